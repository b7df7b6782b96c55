"""Large pages in order of their last use, in buckets of equal logical time.

Everything that one operation touches gets one time, so pages arrive in whole arrays and leave in
whole arrays: the cost of an operation does not depend on how many pages wait here.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.large_pages import Ids


class LruBuckets:
    """Candidates for eviction. An entry may be stale: the one who pops it looks again."""

    def __init__(self, num_large: int) -> None:
        self.time = np.zeros(num_large + 1, np.int64)
        self._queued = np.zeros(num_large + 1, np.bool_)
        self._buckets: dict[int, list[Ids]] = {}
        self._times: list[int] = []

    def touch(self, large: Ids, now: int) -> None:
        """Give ``large`` pages the time ``now``; what is queued is found stale later."""
        self.time[large] = now

    def add(self, large: Ids) -> None:
        """Queue ``large`` pages at their own times; those already queued stay where they are."""
        fresh = large[~self._queued[large]]
        if not len(fresh):
            return
        self._queued[fresh] = True
        times = self.time[fresh]
        first = int(times[0])
        if (times == first).all():
            self._bucket(first).append(fresh)
            return
        for time in np.unique(times).tolist():
            self._bucket(time).append(fresh[times == time])

    def _bucket(self, time: int) -> list[Ids]:
        if time not in self._buckets:
            self._buckets[time] = []
            heapq.heappush(self._times, time)
        return self._buckets[time]

    def pop_oldest(self) -> Ids | None:
        """Take the whole oldest bucket out, without the pages touched since; None when empty.

        Pages touched since are queued again at their new time.
        """
        while self._times:
            time = heapq.heappop(self._times)
            large = np.concatenate(self._buckets.pop(time))
            self._queued[large] = False
            stale: NDArray[np.bool_] = self.time[large] != time
            if stale.any():
                self.add(large[stale])
                large = large[~stale]
            if len(large):
                return large
        return None
