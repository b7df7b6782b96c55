"""A report as a figure: what a request needs, and how close each layout comes to the ideal."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jenga_sglang.core.cut.demand import ideal_bytes
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.plan.notes import notes
from jenga_sglang.plan.report import LayoutRow, Report
from jenga_sglang.units import human_tokens

WIDTH_INCHES, HEIGHT_INCHES, DPI = 12.0, 5.4, 150
_PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#72b7b2")
_LENGTH_SHADES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b", "#041f4a")
_OURS = "#2a7f3f"


def plot(report: Report, path: Path) -> None:
    """Draw the report into ``path``; its suffix (.png, .svg, .pdf) says how."""
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.9))
    _plot_needs(report, left)
    _plot_layouts(report, right)
    pool = human_bytes(report.plan.geometry.pool_bytes)
    figure.suptitle(f"{report.model.name}, {pool} of KV cache", fontweight="bold")
    if text := "\n".join(notes(report)):
        figure.supxlabel(text, fontsize=7, color="dimgrey")
    figure.savefig(path)


def _plot_needs(report: Report, axes: Axes) -> None:
    """Stacked bars: each group's share of what a request of a length needs."""
    places = range(len(report.lengths))
    bottoms = [0.0] * len(report.lengths)
    for index, spec in enumerate(report.model.specs):
        parts = [ideal_bytes(spec, n + report.model.image_tokens) for n in report.lengths]
        shares = [100 * part / all_ for part, all_ in zip(parts, report.needed_bytes, strict=True)]
        color = _PALETTE[index % len(_PALETTE)]
        axes.bar(places, shares, 0.6, bottoms, label=spec.name, color=color)
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    for place, needed in zip(places, report.needed_bytes, strict=True):
        axes.text(place, 102, human_bytes(needed), ha="center", fontsize=8)
    axes.set_xticks(list(places), [human_tokens(n) for n in report.lengths])
    axes.set_xlabel("tokens of one request")
    axes.set_ylabel("% of what it needs")
    axes.set_ylim(0, 112)
    axes.set_title("What one request needs, by layer group", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    _declutter(axes)


def _plot_layouts(report: Report, axes: Axes) -> None:
    """Grouped bars: room for requests, as a share of the ideal, per layout and length."""
    rows, ideal = report.layouts[:-1], report.layouts[-1]
    series = [human_tokens(n) for n in report.lengths] + ["mix"] * (len(report.lengths) > 1)
    height = 0.8 / len(series)
    for index, label in enumerate(series):
        shade = _LENGTH_SHADES[index % len(_LENGTH_SHADES)]
        offsets = [place + height * index - 0.4 + height / 2 for place in range(len(rows))]
        shares = [100 * _value(row, index) / max(_value(ideal, index), 1e-9) for row in rows]
        axes.barh(offsets, shares, height, label=label, color=shade)
        for row, offset, share in zip(rows, offsets, shares, strict=True):
            value = f"{_value(row, index):,.1f}"
            axes.text(share + 0.8, offset, value, va="center", fontsize=6.5)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        if row.name.endswith("(ours)"):
            tick.set_color(_OURS)
            tick.set_fontweight("bold")
    axes.invert_yaxis()
    axes.axvline(100, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(0, 112)
    axes.set_xlabel("% of the ideal number of running requests (numbers: requests)")
    axes.set_title("Room for running requests", fontsize=10)
    axes.legend(
        title="tokens", fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    _declutter(axes)


def _value(row: LayoutRow, index: int) -> float:
    return row.concurrent[index] if index < len(row.concurrent) else row.mixed


def _label(row: LayoutRow) -> str:
    return f"{row.name}\n(today)" if row.is_stock else row.name


def _declutter(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
