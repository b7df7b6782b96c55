"""What was used when: the logical times by which pages are evicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from jenga_sglang.core.books.lru import LruBuckets
from jenga_sglang.core.books.memory import MOST_WEIGHT, Memory
from jenga_sglang.core.ids import Ids, without_repeats
from jenga_sglang.core.needs import History
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

# Priorities of requests are weights from 1 on; this is the weight of priority 0.
MIDDLE_WEIGHT = 1 << 19


# Large pages of one tier, and its order of eviction.
Place = tuple[LruBuckets, Ids]


class Order(Enum):
    """What of all that no running request needs is evicted first (`--radix-eviction-policy`)."""

    LRU = "lru"  # what was used longest ago; decides among equals below
    LFU = "lfu"  # what the fewest requests have hit
    SLRU = "slru"  # what no request has hit
    PRIORITY = "priority"  # what only requests of low priority have used


@dataclass(frozen=True)
class Recency:
    """Gives pages their times. One time for all groups, unless the policy is not balanced. In
    other orders than LRU a weight counts before the time (`Memory.weights`)."""

    memory: Memory
    policy: CachePolicy
    order: Order = Order.LRU

    def __post_init__(self) -> None:
        self.memory.is_weighing = self.order is not Order.LRU

    def count_hit(self, running: Running) -> None:
        """``running`` hits all that is in its row; for an order that weighs."""
        weights, row = self.memory.weights, running.row
        if self.order is Order.LFU:
            weights[row] = np.minimum(weights[row] + 1, MOST_WEIGHT)
        elif self.order is Order.SLRU:
            weights[row] = 1

    def touch(self, running: Running, num_pages: int) -> None:
        """A new time, in every group, for all that hits of the lengths that ``running`` keeps need
        of its first ``num_pages`` pages, and for what every longer history needs of them."""
        memory, history, kept = self.memory, running.history, running.kept
        memory.tick()
        row = running.pages[:num_pages]
        if memory.is_weighing and self.order is Order.PRIORITY:
            weight = min(max(1, running.priority + MIDDLE_WEIGHT), MOST_WEIGHT)
            memory.weights[row] = np.maximum(memory.weights[row], weight)
        for g in range(memory.num_groups):
            if not self.policy.balanced:
                memory.tick()
            for start, stop in history.pages_of_hits(g, num_pages, kept):
                memory.touch(g, row[start:stop])

    def touch_large(self, large: Sequence[Ids]) -> None:
        """A new time for ``large`` pages, by group."""
        self.memory.tick()
        for ids in large:
            if not self.policy.balanced:
                self.memory.tick()
            if self.memory.is_weighing:
                self.memory.lru.no_older(ids, self.memory.now)
            else:
                self.memory.lru.touch(ids, self.memory.now)

    def touch_places(self, places: Sequence[Place]) -> None:
        """A new time, one for all of them, for large pages of any tier."""
        self.memory.tick()
        for lru, large in places:
            lru.no_older(large, self.memory.now)

    def large_pages(self, history: History, pages: Ids) -> list[Ids]:
        """The large pages of every group in which what a hit of all ``pages`` needs lies, hardly
        any twice. They stay the same until `PrefixTree.has_changed` says otherwise."""
        length = len(pages) * history.needs.page_size
        found: list[Ids] = []
        for g in history.needs.groups:
            kept = history.pages_of_hits(g, len(pages), (length,))
            parts = [self.memory.large_pages(g, pages[start:stop]) for start, stop in kept]
            large = np.concatenate(parts) if parts else np.empty(0, np.int64)
            # Neighbours lie together: what repeats, repeats at once.
            found.append(without_repeats(large))
        return found
