"""Large pages in order of their last use, in buckets of equal logical time.

Everything that one operation touches gets one time, so pages arrive in whole arrays and leave in
whole arrays: the cost of an operation does not depend on how many pages wait here.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.large_pages import Ids

_NEVER = np.iinfo(np.int64).max


class LruBuckets:
    """Candidates for eviction. An entry may be stale: the one who pops it looks again."""

    def __init__(self, num_large: int) -> None:
        self.time = np.zeros(num_large + 1, np.int64)
        # The bucket that a page's valid entry is in; what other buckets say of it is void.
        self._queued_at = np.full(num_large + 1, _NEVER, np.int64)
        self._buckets: dict[int, list[Ids]] = {}
        self._times: list[int] = []
        self._num_entries = 0

    def touch(self, large: Ids, now: int) -> None:
        """Give ``large`` pages the time ``now``; what is queued is found stale later."""
        self.time[large] = now

    def add(self, large: Ids) -> None:
        """Queue ``large`` pages at their own times; those queued as early stay where they are."""
        fresh = large[self._queued_at[large] > self.time[large]]
        if not len(fresh):
            return
        if self._num_entries > 2 * len(self.time):
            self._drop_void()
        times = self.time[fresh]
        self._queued_at[fresh] = times
        self._num_entries += len(fresh)
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
            parts = self._buckets.pop(time)
            self._num_entries -= sum(map(len, parts))
            large = self._valid(time, parts)
            self._queued_at[large] = _NEVER
            stale: NDArray[np.bool_] = self.time[large] != time
            if stale.any():
                self.add(large[stale])
                large = large[~stale]
            if len(large):
                return large
        return None

    def _valid(self, time: int, parts: list[Ids]) -> Ids:
        large = np.concatenate(parts)
        return np.unique(large[self._queued_at[large] == time])

    def _drop_void(self) -> None:
        for time, parts in self._buckets.items():
            self._buckets[time] = [self._valid(time, parts)]
        self._num_entries = sum(len(p) for parts in self._buckets.values() for p in parts)
