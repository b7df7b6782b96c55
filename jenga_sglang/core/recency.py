"""What was used when: the logical times by which pages are evicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.ids import Ids, without_repeats
from jenga_sglang.core.needs import History
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running


@dataclass(frozen=True)
class Recency:
    """Gives pages their times. One time for all groups, unless the policy is not balanced."""

    memory: Memory
    policy: CachePolicy

    def touch(self, running: Running, num_pages: int) -> None:
        """A new time, in every group, for all that hits of the lengths that ``running`` keeps need
        of its first ``num_pages`` pages, and for what every longer history needs of them."""
        self.memory.tick()
        row, history, kept = running.pages[:num_pages], running.history, running.kept
        balanced, touch = self.policy.balanced, self.memory.touch
        for g in history.needs.groups:
            if not balanced:
                self.memory.tick()
            for start, stop in history.pages_of_hits(g, num_pages, kept):
                touch(g, row[start:stop])

    def touch_large(self, large: Sequence[Ids]) -> None:
        """A new time for ``large`` pages, by group."""
        self.memory.tick()
        for ids in large:
            if not self.policy.balanced:
                self.memory.tick()
            self.memory.lru.touch(ids, self.memory.now)

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
