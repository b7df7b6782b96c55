"""Half-open intervals of tokens and of pages, and their arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jenga_sglang.core.ids import ceil_div


class Range(NamedTuple):
    """Half-open interval ``[start, stop)`` of tokens or of pages."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return max(0, self.stop - self.start)


def non_empty(*ranges: Range) -> tuple[Range, ...]:
    """Those of ``ranges`` that have something in them."""
    return tuple([r for r in ranges if r.start < r.stop])


def page_ranges(ranges: Iterable[Range], page_size: int) -> tuple[Range, ...]:
    """The pages that token ``ranges`` touch, as ascending disjoint page ranges."""
    pages: list[Range] = []
    for start, stop in ranges:
        first, last = start // page_size, ceil_div(stop, page_size)
        if pages and first <= pages[-1].stop:
            pages[-1] = Range(pages[-1].start, max(pages[-1].stop, last))
        else:
            pages.append(Range(first, last))
    return tuple(pages)


def subtract(ranges: Iterable[Range], kept: Iterable[Range]) -> list[Range]:
    """The parts of ``ranges`` outside ``kept``; both ascending and disjoint."""
    kept = list(kept)
    rest: list[Range] = []
    for start, stop in ranges:
        for keep in kept:
            if keep.stop <= start or keep.start >= stop:
                continue
            if start < keep.start:
                rest.append(Range(start, keep.start))
            start = keep.stop
        if start < stop:
            rest.append(Range(start, stop))
    return rest


def intersect(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """The parts of ``ranges`` inside ``others``; both ascending and disjoint."""
    others = list(others)
    return [
        Range(max(a, c), min(b, d)) for a, b in ranges for c, d in others if max(a, c) < min(b, d)
    ]


def union(ranges: Iterable[Range]) -> list[Range]:
    """``ranges`` in any order as ascending disjoint ranges, merged where they meet."""
    merged: list[Range] = []
    for r in sorted(ranges):
        start, stop = r
        if start >= stop:
            continue
        if merged and start <= merged[-1].stop:
            if stop > merged[-1].stop:
                merged[-1] = Range(merged[-1].start, stop)
        else:
            merged.append(r)
    return merged
