"""Ratios of wall times, round by round, as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Run = dict[str, Any]

HEADER = (
    *("model", "load", "server", "wall time, s", "times as fast as stock"),
    *("times as fast as `whole`", "hit rate", "decoded at once", "stock's answers"),
)


def table(runs: Sequence[Run]) -> str:
    """A row per model, load and server: medians and ranges."""
    lines = [HEADER, tuple("---" for _ in HEADER)]
    keys = dict.fromkeys((r["model"], r["load"], r["server"]) for r in runs)
    order = ("stock", "whole", "jenga")
    for model, load, server in sorted(
        keys, key=lambda k: (k[0], _first(runs, k[0], k[1]), order.index(k[2]))
    ):
        lines.append(_row(runs, model, load, server))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def speedups(runs: Sequence[Run], model: str, load: str, server: str, against: str) -> list[float]:
    """How many times as fast ``server`` was as ``against``, round by round; empty where one of
    them did not run."""
    ours, theirs = (_of(runs, model, load, name) for name in (server, against))
    rounds = sorted(ours.keys() & theirs.keys())
    return [theirs[n]["wall_s"] / ours[n]["wall_s"] for n in rounds]


def _of(runs: Sequence[Run], model: str, load: str, server: str) -> dict[int, Run]:
    wanted = (model, load, server)
    return {r["repeat"]: r for r in runs if (r["model"], r["load"], r["server"]) == wanted}


def _first(runs: Sequence[Run], model: str, load: str) -> int:
    return next(i for i, r in enumerate(runs) if (r["model"], r["load"]) == (model, load))


def _row(runs: Sequence[Run], model: str, load: str, server: str) -> tuple[str, ...]:
    own = list(_of(runs, model, load, server).values())
    same, answers = (sum(r[name] for r in own) for name in ("same_answers", "answers"))
    ratios = [
        _shown(speedups(runs, model, load, server, against)) if server != against else ""
        for against in ("stock", "whole")
    ]
    return (
        *(model, load, server, _shown([r["wall_s"] for r in own]), *ratios),
        _shown([r["hit_rate"] for r in own]),
        _shown([r["peak_running"] for r in own]),
        f"{same} of {answers}",
    )


def _shown(values: Sequence[float]) -> str:
    """The median, and the range unless there is none."""
    if not values:
        return ""
    median, least, most = (
        f"{v:.3g}" for v in (statistics.median(values), min(values), max(values))
    )
    return median if least == most else f"{median} ({least} to {most})"
