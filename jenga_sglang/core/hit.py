"""The longest prefix that every group can continue from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jenga_sglang.core.dependency import Dependency, Range, page_ranges

FirstMissing = Callable[[int, Range], int | None]


def longest_hit(
    num_pages: int, page_size: int, dependencies: Sequence[Dependency], first_missing: FirstMissing
) -> tuple[int, int | None]:
    """The greatest number of pages, at most ``num_pages``, that every group accepts.

    ``first_missing(group, pages)`` names the first page of a page range that the group does not
    hold. Also returns the group that cut the hit last, or None when nothing did.

    A group that misses page h of what it needs for a prefix refuses every prefix that ends after
    h and no further than this one, because shorter prefixes need all of the same pages up to
    their end (`core.dependency`). So the length may drop straight to h. It only ever drops, and
    the empty prefix needs nothing.
    """
    cut_by: int | None = None
    settled = False
    while not settled:
        settled = True
        for group, dependency in enumerate(dependencies):
            for pages in page_ranges(dependency.needed(num_pages * page_size), page_size):
                missing = first_missing(group, pages)
                if missing is not None:
                    num_pages, cut_by, settled = missing, group, False
                    break
    return num_pages, cut_by
