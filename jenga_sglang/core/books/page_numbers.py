"""Numbers of small and large pages.

Small page ids are numbers in the whole buffer: small page ``p`` of group g lies in large page
``p // small_per_large[g]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jenga_sglang.core.ids import Ids, ends_run

_FEW = 8  # so many ids are counted faster one by one


class PageNumbers:
    """Which small page of a group lies in which large page."""

    def __init__(self, small_per_large: Sequence[int]) -> None:
        self.small_per_large = list(small_per_large)
        self._places = [np.arange(k) for k in small_per_large]

    def add_group(self, small_per_large: int) -> None:
        """One more group, so many small pages of which make a large page."""
        self.small_per_large.append(small_per_large)
        self._places.append(np.arange(small_per_large))

    def large_of(self, group: int, small: Ids) -> Ids:
        """The large page that each small page lies in."""
        per_large = self.small_per_large[group]
        return small if per_large == 1 else small // per_large

    def small_of(self, group: int, large: Ids) -> Ids:
        """The small pages of each large page, (large, small per large)."""
        per_large = self.small_per_large[group]
        return (
            large[:, None] if per_large == 1 else large[:, None] * per_large + self._places[group]
        )

    def by_large(self, group: int, small: Ids) -> tuple[Ids, Ids | int]:
        """The large pages that small pages lie in, each once, and how many lie in each."""
        if self.small_per_large[group] == 1:
            return small, 1
        if len(small) <= _FEW:
            found: dict[int, int] = {}
            for large in self.large_of(group, small).tolist():
                found[large] = found.get(large, 0) + 1
            return np.array(list(found), np.int64), np.array(list(found.values()), np.int64)
        large_pages = np.sort(self.large_of(group, small))
        last = np.flatnonzero(ends_run(large_pages))
        counts = last + 1
        counts[1:] -= counts[:-1].copy()
        return large_pages[last], counts
