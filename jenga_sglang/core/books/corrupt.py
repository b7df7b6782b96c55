"""What the pool's books say when they contradict one another.

The checks are no ``assert``: they hold under ``python -O`` too, and say by how much they fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

SHOWN = 5  # of the numbers that break a law

T = TypeVar("T")


class CorruptPool(RuntimeError):
    """The books of a pool contradict one another: whatever is computed from here on is worthless.

    A fault of this package, never of a request or a flag.
    """


def agree(what: str, booked: object, recounted: object) -> None:
    """Raise `CorruptPool` unless the number in the books is the one that a recount gives."""
    if booked != recounted:
        raise CorruptPool(f"{what}: {booked} in the books, {recounted} recounted")


def within(what: str, number: int, least: int, most: int) -> None:
    """Raise `CorruptPool` unless ``number`` is from ``least`` to ``most``."""
    if not least <= number <= most:
        raise CorruptPool(f"{what}: {number}, not from {least} to {most}")


def none(what: str, offenders: Iterable[object]) -> None:
    """Raise `CorruptPool` with the first ``offenders`` and how many there are, if there are any."""
    every = offenders.tolist() if isinstance(offenders, np.ndarray) else list(offenders)
    if every:
        more = f" … ({len(every)} in all)" if len(every) > SHOWN else ""
        raise CorruptPool(f"{what}: {', '.join(map(str, islice(every, SHOWN)))}{more}")


def distinct(what: str, ids: NDArray[np.int64], stop: int) -> None:
    """Raise `CorruptPool` unless each of ``ids`` is from 1 to below ``stop``, and there once."""
    if not len(ids):
        return
    if ids.min() < 1 or ids.max() >= stop:
        none(f"{what} outside 1 to {stop - 1}", ids[(ids < 1) | (ids >= stop)])
    counts = np.bincount(ids)
    if counts.max() > 1:
        none(f"{what} more than once", np.flatnonzero(counts > 1))


def present(value: T | None, otherwise: str) -> T:
    """``value``; raises `CorruptPool` with the reason ``otherwise`` when there is none."""
    if value is None:
        raise CorruptPool(otherwise)
    return value
