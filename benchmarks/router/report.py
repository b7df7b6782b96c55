"""The table of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

HEAD = "| memory of both servers | round robin | cache-aware |\n|---|---|---|"


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Hit rates: median and range over the repeats."""
    memories = dict.fromkeys(run["memory"] for run in runs)
    rows = [
        f"| {memory} | {_shown(runs, memory, 'round_robin')} | "
        f"{_shown(runs, memory, 'cache_aware')} |"
        for memory in memories
    ]
    return "\n".join([HEAD, *rows])


def _shown(runs: Sequence[dict[str, Any]], memory: str, policy: str) -> str:
    rates = [r["hit_rate"] for r in runs if (r["memory"], r["policy"]) == (memory, policy)]
    return f"{median(rates):.3f} ({min(rates):.3f} to {max(rates):.3f})"
