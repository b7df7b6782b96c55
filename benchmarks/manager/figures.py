"""Results as a figure: a panel a geometry and sweep, a line an operation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.manager.operations import UNITS
from benchmarks.manager.report import Point, medians

SWEEPS = {
    "pool": ("large_pages", "large pages"),
    "tree": ("cached_prefixes", "cached prefixes"),
    "batch": ("batch", "requests at once"),
}
# One more than matplotlib's own cycle has.
COLORS = [*(f"C{index}" for index in range(10)), "black"]


def plot_points(points: Sequence[Point], out: Path) -> None:
    """Draw medians with 10th to 90th percentiles to ``out``; its suffix says the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("plots need matplotlib: pip install 'jenga-sglang[plot]'") from error

    geometries = list(dict.fromkeys(point["geometry"] for point in points))
    figure = Figure(figsize=(10, 3 * len(geometries)), layout="constrained")
    axes = figure.subplots(len(geometries), len(SWEEPS), sharey=True, squeeze=False)
    for row, geometry in zip(axes, geometries, strict=True):
        for axis, (sweep, (column, title)) in zip(row, SWEEPS.items(), strict=True):
            chosen = [p for p in points if p["geometry"] == geometry and p["sweep"] == sweep]
            _draw(axis, chosen, column)
            axis.set_title(f"{geometry}: {title}", loc="left")
        row[0].set_ylabel("µs per unit")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def _draw(axis: Any, points: Sequence[Point], column: str) -> None:
    for index, (operation, unit) in enumerate(UNITS.items()):
        found = medians(points, operation)
        results = [point["operations"][operation] for point, _ in found]
        sizes = [point[column] for point, _ in found]
        label = f"{operation} (per {unit})"
        color = COLORS[index]
        axis.plot(sizes, [us for _, us in found], "o-", label=label, color=color, ms=3)
        low, high = ([r[name] for r in results] for name in ("p10_us", "p90_us"))
        axis.fill_between(sizes, low, high, alpha=0.15, color=color)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.spines[["top", "right"]].set_visible(False)
