"""The longest prefix that every group can continue from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ranges import Range

Needed = Callable[[int, int], Sequence[Range]]
Refusal = Callable[[int, Range], int | None]


def longest_hit(
    num_pages: int,
    page_size: int,
    dependencies: Sequence[Dependency],
    needed: Needed,
    refuse: Refusal,
) -> tuple[int, int | None]:
    """The greatest number of pages, at most ``num_pages``, that every group accepts.

    ``needed(group, length)`` are the pages that the group's dependency needs of ``length`` tokens.
    ``refuse(group, pages)`` is None when the group holds all of a page range. Otherwise it is the
    first page that it does not hold, or less where it knows to refuse shorter prefixes too. Also
    returns the group that cut the hit last, or None when nothing did.

    A group that misses page h of what it needs for a prefix refuses every prefix that ends after
    h and no further than this one, because shorter prefixes need all of the same pages up to
    their end (`core.dependency`). So the number may drop straight to h, as it may to what a
    dependency calls `Dependency.whole`. It only ever drops, and the empty prefix needs nothing.
    """
    cut_by: int | None = None
    settled = False
    while not settled:
        settled = True
        for group, dependency in enumerate(dependencies):
            whole = dependency.whole(num_pages * page_size) // page_size
            if whole < num_pages:
                num_pages, cut_by, settled = whole, group, False
            for pages in needed(group, num_pages * page_size):
                missing = refuse(group, pages)
                if missing is not None:
                    num_pages, cut_by, settled = missing, group, False
                    break
    return num_pages, cut_by
