"""Everything that `jenga plan` prints, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jenga_sglang.core.cut.demand import ideal_bytes
from jenga_sglang.core.cut.planner import Plan, plan_geometry
from jenga_sglang.core.cut.search import Candidate
from jenga_sglang.plan.host import HostRoom, host_room
from jenga_sglang.plan.layouts import Layout, compare
from jenga_sglang.plan.model import Model


@dataclass(frozen=True)
class LayoutRow:
    """A layout with its room for running requests of every length and of the mix, and the share
    of the pool that does not hold what the mix needs."""

    name: str
    note: str
    is_stock: bool
    concurrent: tuple[float, ...]
    mixed: float
    mixed_waste: float


@dataclass(frozen=True)
class Report:
    """``lengths`` are tokens of text; requests also have the model's image tokens."""

    model: Model
    plan: Plan
    lengths: tuple[int, ...]
    skipped_lengths: tuple[int, ...]
    needed_bytes: tuple[int, ...]
    layouts: tuple[LayoutRow, ...]
    host: HostRoom | None = None


def make_report(
    model: Model,
    pool_bytes: int,
    lengths: Sequence[int],
    page_size: int | Sequence[int] | None = None,
    host_bytes: int | None = None,
) -> Report:
    """Plan for ``model`` and compare layouts, with host memory below the pool or without. Lengths
    beyond the model's are left out, unless all are: then its own length is taken. ``page_size`` as
    for `plan_geometry`."""
    kept = tuple(n for n in lengths if n <= model.max_length) or (model.max_length,)
    totals = [n + model.image_tokens for n in kept]
    plan = plan_geometry(
        model.specs,
        pool_bytes=pool_bytes,
        max_length=model.max_length + model.image_tokens,
        page_size=page_size,
        lengths=totals,
    )
    needed = tuple(sum(ideal_bytes(s, n) for s in model.specs) for n in totals)
    layouts = compare(model, plan.geometry, plan.exact_lcm.groups, totals)
    rows = tuple(_row(layout, totals, sum(needed), pool_bytes) for layout in layouts)
    skipped = tuple(n for n in lengths if n not in kept)
    host = host_room(model, plan.geometry, host_bytes, kept) if host_bytes else None
    return Report(model, plan, kept, skipped, needed, rows, host)


def _row(layout: Layout, lengths: list[int], needed_bytes: int, pool_bytes: int) -> LayoutRow:
    mixed = layout.concurrent(lengths)
    waste = 1 - mixed * needed_bytes / len(lengths) / pool_bytes
    concurrent = tuple(layout.concurrent([n]) for n in lengths)
    return LayoutRow(layout.name, layout.note, layout.is_stock, concurrent, mixed, waste)


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; sizes in bytes, costs and waste as shares."""
    model, plan = report.model, report.plan
    return {
        "model": {
            "name": model.name,
            "architecture": model.stock.architecture,
            "max_length_tokens": model.max_length,
            "kv_dtype": model.kv_dtype,
            "image_tokens": model.image_tokens,
            "tail_tokens": model.tail_tokens,
            "ignored_window": model.ignored_window,
            "sharing_layers": [layer.index for layer in model.layers if layer.shares],
        },
        "pool_bytes": plan.geometry.pool_bytes,
        "large_page_bytes": plan.geometry.large_page_bytes,
        "large_page_bound_bytes": plan.bound_bytes,
        "num_large_pages": plan.geometry.num_large_pages,
        "page_size_tokens": plan.geometry.page_size,
        "groups": [
            {
                "name": group.spec.name,
                "layers": list(group.spec.layers),
                "dependency": str(group.spec.dependency),
                "k_bytes": group.spec.k_bytes,
                "v_bytes": group.spec.v_bytes,
                "state_bytes": list(group.spec.state_bytes),
                "stripes": group.stripes,
                "small_page_bytes": group.small_page_bytes,
                "padding_bytes": group.padding_bytes,
                "small_pages_per_large_page": plan.geometry.small_per_large(index),
            }
            for index, group in enumerate(plan.geometry.groups)
        ],
        "chosen": _candidate(plan, plan.chosen),
        "candidates": [_candidate(plan, c) for c in plan.candidates],
        "lengths_tokens": list(report.lengths),
        "needed_bytes": list(report.needed_bytes),
        "layouts": [asdict(row) for row in report.layouts],
        "host": asdict(report.host) if report.host else None,
    }


def _candidate(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    return {
        "page_size_tokens": candidate.page_size,
        "large_page_bytes": candidate.large_page_bytes,
        "stripes": [group.stripes for group in candidate.groups],
        "padding_bytes": [group.padding_bytes for group in candidate.groups],
        "page_tables": candidate.num_tables,
        "exact_lcm": candidate.is_exact_lcm,
        "within_bound": candidate.large_page_bytes <= plan.bound_bytes,
        "cost": {**asdict(candidate.cost), "total": candidate.cost.total},
    }
