"""A report as tables for a terminal of 100 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jenga_sglang.core.cut.demand import ideal_bytes
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.cut.search import Candidate
from jenga_sglang.plan.host import HostRoom
from jenga_sglang.plan.notes import notes
from jenga_sglang.plan.report import LayoutRow, Report
from jenga_sglang.units import human_tokens

SHOWN_CANDIDATES = 4


def render(report: Report, console: Console) -> None:
    """Print groups, geometry, the reasons for it, and what fits."""
    model = report.model
    pool = human_bytes(report.plan.geometry.pool_bytes)
    console.print(
        f"[bold]{model.name}[/] · {model.stock.architecture} · KV {model.kv_dtype} · "
        f"TP {model.tp} · {pool} for the KV cache"
    )
    for table in (_groups(report), _geometry(report), _reasons(report), _layouts(report)):
        console.print(table)
    if report.host is not None:
        console.print(_host(report, report.host))
    for note in notes(report):
        console.print(Text(note, style="dim"))


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first ``left`` columns are text and the others numbers."""
    table = Table(title=title, title_style="bold", title_justify="left", box=SIMPLE_HEAD)
    table.caption_justify = "left"
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table


def _groups(report: Report) -> Table:
    lengths = [f"at {human_tokens(n)}" for n in report.lengths]
    table = _table(
        "Layer groups: what one request needs",
        *("group", "layers", "one layer", "one token", *lengths),
    )
    for spec in report.model.specs:
        one = spec.layer_state_bytes if spec.is_state else spec.row_bytes
        needed = [ideal_bytes(spec, n + report.model.image_tokens) for n in report.lengths]
        table.add_row(
            spec.name,
            str(len(spec.layers)),
            human_bytes(one),
            "-" if spec.is_state else human_bytes(spec.bytes_per_token),
            *map(human_bytes, needed),
        )
    if len(report.model.specs) > 1:
        table.add_row("all", "", "", "", *map(human_bytes, report.needed_bytes), style="bold")
    return table


def _geometry(report: Report) -> Table:
    geometry, plan = report.plan.geometry, report.plan
    table = _table(
        f"Geometry: {geometry.num_large_pages:,} large pages of "
        f"{human_bytes(geometry.large_page_bytes)} (bound {human_bytes(plan.bound_bytes)}), "
        f"{geometry.page_size} tokens a page",
        *("group", "stripes", "layers each", "small page", "padding", "in a large page"),
    )
    for index, group in enumerate(geometry.groups):
        table.add_row(
            group.spec.name,
            str(group.stripes),
            str(group.layers_per_stripe),
            human_bytes(group.small_page_bytes),
            human_bytes(group.padding_bytes) if group.padding_bytes else "-",
            f"{geometry.small_per_large(index):,}",
        )
    return table


def _reasons(report: Report) -> Table:
    table = _table(
        "Why: cost as a share of what requests need, averaged over the lengths",
        *(
            "  stripes",
            "large page",
            "page",
            "last pages",
            "padding",
            "holes",
            "pool",
            "tables",
            "cost",
        ),
    )
    plan = report.plan
    table.add_row(*_candidate(plan.chosen, "→"), style="bold green")
    others = [c for c in plan.candidates if c is not plan.chosen][:SHOWN_CANDIDATES]
    if not plan.chosen.is_exact_lcm and plan.exact_lcm not in others:
        others.append(plan.exact_lcm)
    for candidate in others:
        forbidden = plan.why_not(candidate) != ""
        style = "red" if forbidden else None
        table.add_row(*_candidate(candidate, "✗" if forbidden else " "), style=style)
    reasons = sorted({reason for c in others if (reason := plan.why_not(c))})
    table.caption = "   ".join(["→ chosen", *(f"✗ {reason}" for reason in reasons)])
    return table


def _candidate(candidate: Candidate, mark: str) -> list[str]:
    cost = candidate.cost
    cut = f"{mark} " + " + ".join(str(group.stripes) for group in candidate.groups)
    if candidate.is_exact_lcm:
        cut += " (exact LCM)"
    if any(part is not None for _, part in candidate.origins):
        cut += " (parts apart)"
    shares = (cost.last_pages, cost.padding, cost.holes, cost.pool, cost.tables, cost.total)
    return [
        cut,
        human_bytes(candidate.large_page_bytes),
        str(candidate.page_size),
        *(f"{share:.2%}" if share < 10 else f"{share:,.0f}x" for share in shares),
    ]


def _layouts(report: Report) -> Table:
    lengths = [human_tokens(n) for n in report.lengths]
    table = _table(
        "Room for running requests of one length, and of all lengths in equal numbers",
        *("  layout", *lengths, "mix", "waste", ""),
    )
    table.columns[-1].justify = "left"
    for row in report.layouts:
        style = "bold green" if row.name.endswith("(ours)") else None
        table.add_row(
            ("→ " if row.is_stock else "  ") + row.name,
            *(_count(value) for value in row.concurrent),
            _count(row.mixed),
            f"{row.mixed_waste:.1%}",
            row.note,
            style=style,
        )
    table.caption = _caption(report.layouts)
    return table


def _host(report: Report, host: HostRoom) -> Table:
    table = _table(
        f"Host memory: {host.num_large_pages:,} large pages, {human_bytes(host.host_bytes)}",
        *("histories of one length that stay hits", *map(human_tokens, report.lengths)),
    )
    table.add_row("in the pool, when nothing runs", *map(_count, host.in_pool))
    table.add_row("in the host", *map(_count, host.in_host), style="bold green")
    table.add_row("bytes of one", *map(human_bytes, host.hit_bytes))
    table.add_row("all rows of all layers", *map(human_bytes, host.all_rows_bytes))
    return table


def _caption(rows: tuple[LayoutRow, ...]) -> str:
    caption = "→ what SGLang 0.5.23 does with this model; not rounded to whole requests"
    if any("best" in row.name for row in rows):
        caption += "; best ratio: for the mix"
    return caption


def _count(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
