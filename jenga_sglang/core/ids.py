"""Arrays of page ids, and the division that counts pages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Numpy casts any other integers before it indexes with them: ten times slower for a few.
Ids = NDArray[np.int64]


def ceil_div(number: int, unit: int) -> int:
    """How many units it takes to hold ``number``."""
    return -(-number // unit)


def round_up(number: int, unit: int) -> int:
    """The least multiple of ``unit`` that is not below ``number``."""
    return ceil_div(number, unit) * unit


def without_repeats(ids: Ids) -> Ids:
    """``ids`` without those that the next one is equal to: each once if they ascend."""
    return ids[ends_run(ids)]


def each_once(ids: Ids) -> Ids:
    """All of ``ids``, ascending, each once. `numpy.unique` does that by hashing, which takes ten
    times as long for a thousand."""
    return without_repeats(np.sort(ids))


def ends_run(ids: Ids) -> NDArray[np.bool_]:
    """Which ids the next one is not equal to."""
    ends = np.ones(len(ids), np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=ends[:-1])
    return ends


def last_true(flags: NDArray[np.bool_]) -> int | None:
    """Index of the last of ``flags`` that is set, or None."""
    index = len(flags) - 1 - int(flags[::-1].argmax()) if len(flags) else 0
    return index if len(flags) and flags[index] else None


def common_length(a: Ids, b: Ids) -> int:
    """How many numbers ``a`` and ``b`` begin with alike."""
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differs[0]) if len(differs) else shorter
