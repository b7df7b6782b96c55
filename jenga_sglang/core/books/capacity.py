"""How many large and small pages there are of everything, and what fits."""

from __future__ import annotations

from collections.abc import Sequence

from jenga_sglang.core.books.page_numbers import PageNumbers
from jenga_sglang.core.ids import ceil_div


class Capacity(PageNumbers):
    """Counts, by group but for ``num_free``; `core.books.large_pages` keeps them."""

    def __init__(self, small_per_large: Sequence[int], num_large: int) -> None:
        super().__init__(small_per_large)
        num_groups = len(small_per_large)
        self.num_free = num_large  # large pages that nobody owns
        self.num_owned = [0] * num_groups  # large pages
        self.num_reclaimable = [0] * num_groups  # owned, nothing used: could be taken back whole
        self.num_used = [0] * num_groups  # small pages
        self.num_held = [0] * num_groups  # small pages, used or cached

    def add_group(self, small_per_large: int) -> None:
        """One more group, which owns nothing yet."""
        super().add_group(small_per_large)
        for counts in (self.num_owned, self.num_reclaimable, self.num_used, self.num_held):
            counts.append(0)

    def num_holes(self, group: int) -> int:
        """Free small pages inside large pages that ``group`` owns already."""
        return self.num_owned[group] * self.small_per_large[group] - self.num_held[group]

    @property
    def usable(self) -> list[int]:
        """By group, the free and cached small pages in large pages that it must keep (some are
        used)."""
        counts = (self.num_owned, self.num_reclaimable, self.num_used, self.small_per_large)
        return [(owned - idle) * k - used for owned, idle, used, k in zip(*counts, strict=True)]

    @property
    def available(self) -> int:
        """Large pages that are free, or would be if everything cached had gone."""
        return self.num_free + sum(self.num_reclaimable)

    def large_pages_in_use(self) -> float:
        """What running requests pin, in large pages and parts of them."""
        return sum([n / k for n, k in zip(self.num_used, self.small_per_large, strict=True)])

    # Asked several times for every request and step: plain loops are twice as fast as `zip`.

    def shortfall(self, demand: Sequence[int]) -> int:
        """Large pages short of serving ``demand`` small pages per group without any eviction."""
        missing = -self.num_free
        for g, count in enumerate(demand):
            per_large = self.small_per_large[g]
            fresh = count + self.num_held[g] - self.num_owned[g] * per_large
            if fresh > 0:
                missing += ceil_div(fresh, per_large)
        return missing

    def large_of_each(self, demand: Sequence[int]) -> list[int]:
        """Large pages that ``demand`` small pages per group take, of those that are `available`,
        once everything cached has gone; of each group."""
        taken = []
        for g, count in enumerate(demand):
            kept = self.num_owned[g] - self.num_reclaimable[g]
            taken.append(max(0, ceil_div(count + self.num_used[g], self.small_per_large[g]) - kept))
        return taken

    def large_needed(self, demand: Sequence[int]) -> int:
        """`large_of_each`, together."""
        return sum(self.large_of_each(demand))

    def can_serve(self, demand: Sequence[int]) -> bool:
        """Whether ``demand`` small pages per group fit once everything cached has gone."""
        return self.large_needed(demand) <= self.available
