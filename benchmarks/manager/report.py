"""Results as Markdown tables, and how much an operation grows with the pool."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.manager.operations import UNITS

Point = dict[str, Any]

# Pools, in large pages, between which cost should be flat.
FLAT_FROM_PAGES, FLAT_TO_PAGES = 10**4, 10**7


def load_points(paths: Iterable[Path]) -> list[Point]:
    """The points of result files, in order."""
    return [point for path in paths for point in json.loads(path.read_text())["points"]]


def medians(points: Sequence[Point], operation: str) -> list[tuple[Point, float]]:
    """The points that have the operation, with its median in µs."""
    return [
        (point, point["operations"][operation]["median_us"])
        for point in points
        if operation in point["operations"]
    ]


def slope(points: Sequence[Point], operation: str) -> tuple[float, float] | None:
    """How cost grows over pools from `FLAT_FROM_PAGES` to `FLAT_TO_PAGES`: the exponent of the
    best power law (0: flat, 1: as the pool), and cost at the largest against the smallest of
    them. None with fewer than two such pools."""
    pairs = [
        (point["large_pages"], us)
        for point, us in medians(points, operation)
        if FLAT_FROM_PAGES <= point["large_pages"] <= FLAT_TO_PAGES
    ]
    if len(pairs) < 2:
        return None
    sizes, costs = np.log10(np.array(sorted(pairs), dtype=float)).T
    return float(np.polyfit(sizes, costs, 1)[0]), float(10 ** (costs[-1] - costs[0]))


def tables(points: Sequence[Point]) -> str:
    """A table per geometry and sweep: an operation a row, a point a column."""
    parts = []
    for geometry in dict.fromkeys(point["geometry"] for point in points):
        for sweep, column in (
            ("pool", "large_pages"),
            ("tree", "cached_prefixes"),
            ("batch", "batch"),
        ):
            of_sweep = _of(points, geometry, sweep)
            if of_sweep:
                parts.append(_table(geometry, sweep, column, of_sweep))
    return "\n\n".join(parts)


def _of(points: Sequence[Point], geometry: str, sweep: str) -> list[Point]:
    return [p for p in points if p["geometry"] == geometry and p["sweep"] == sweep]


def _table(geometry: str, sweep: str, column: str, points: Sequence[Point]) -> str:
    header = [f"{geometry}: µs per", "", *(f"{p[column]:,}" for p in points)]
    with_slope = sweep == "pool"
    if with_slope:
        header += ["exponent", "10⁷ / 10⁴"]
    lines = [header, [":--", ":--"] + ["--:"] * (len(header) - 2)]
    lines += [_row(operation, points, with_slope) for operation in UNITS]
    title = {
        "pool": "Large pages of a full pool",
        "tree": f"Cached prefixes in a pool of {points[0]['large_pages']:,} large pages",
        "batch": f"Requests at once in a full pool of {points[0]['large_pages']:,} large pages",
    }[sweep]
    return f"{title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(operation: str, points: Sequence[Point], with_slope: bool) -> list[str]:
    cells = [operation, UNITS[operation]]
    cells += [_shown(point["operations"].get(operation)) for point in points]
    if with_slope:
        grown = slope(points, operation)
        cells += ["-", "-"] if grown is None else [f"{grown[0]:+.2f}", f"{grown[1]:.2f}"]
    return cells


def _shown(result: dict[str, float] | None) -> str:
    """Median, with the 10th and 90th percentile."""
    if result is None:
        return "-"
    median, low, high = (f"{result[name]:.3g}" for name in ("median_us", "p10_us", "p90_us"))
    return f"{median} ({low} to {high})"
