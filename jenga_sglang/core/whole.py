"""Where a step may not stop: inside an image whose tokens read those behind them.

What such a token keeps depends on the rest of its image, so one step computes the image to its end.
A step may begin inside: the pages before it are of a step that saw all of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

from jenga_sglang.core.ids import ceil_div
from jenga_sglang.core.ranges import Range


def longest_step(start: int, most: int, length: int, whole: Sequence[Range], page_size: int) -> int:
    """Tokens that a step computes from ``start`` of a prompt of ``length``, at most ``most``; it
    ends with a page or the prompt, and not inside one of ``whole``. 0 where it could only end
    inside: see `shortest_step`. A prompt without any is cut anywhere."""
    stop = start + most
    if stop >= length or not whole:
        return most
    stop = stop // page_size * page_size
    while inside := _around(stop, whole):
        stop = inside.start // page_size * page_size
    return max(0, stop - start)


def shortest_step(start: int, length: int, whole: Sequence[Range], page_size: int) -> int:
    """The fewest tokens, at least one, with which such a step can end."""
    stop = (start // page_size + 1) * page_size
    while inside := _around(stop, whole):
        stop = ceil_div(inside.stop, page_size) * page_size
    return min(stop, length) - start


def longest_of(whole: Sequence[Range], page_size: int) -> int:
    """The most tokens that one step has to compute for the sake of ``whole``, in order."""
    starts = [r.start // page_size * page_size for r in whole]
    end = whole[-1].stop + page_size if whole else 0
    return max((shortest_step(start, end, whole, page_size) for start in starts), default=0)


def _around(stop: int, whole: Sequence[Range]) -> Range | None:
    return next((r for r in whole if r.start < stop < r.stop), None)
