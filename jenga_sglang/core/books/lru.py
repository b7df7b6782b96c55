"""Large pages in order of their last use, in buckets of equal logical time.

Everything that one operation touches gets one time, so pages arrive in whole arrays and leave in
whole arrays. Within a bucket the page that serves the longest prefix goes first. Some buckets
grow with the pool (all that nothing ever needed again has one time), so a bucket is never gone
through as a whole: it is a few sorted runs, each more than twice as long as the next, of which
only the heads are looked at. A page is merged into a longer run at most log(pages) times.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.corrupt import agree, none
from jenga_sglang.core.ids import Ids, each_once, without_repeats

_NEVER = np.iinfo(np.int64).max
_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_LOOKED_AT = 64  # entries at first, however few are wanted: many may be void

# Entries of a bucket, in the order in which they go: longest prefix first, then lowest id.
_Keys = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """What the buckets must be told of large pages: how long the prefix is that each serves, in
    pages, and whether it holds cached pages and nothing else."""

    depths: Callable[[Ids], Ids]
    are_idle: Callable[[Ids], NDArray[np.bool_]]


@dataclass
class _Bucket:
    fresh: list[Ids] = field(default_factory=list)  # not sorted yet
    runs: list[_Keys] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.fresh)) + sum(map(len, self.runs))

    def add_run(self, run: _Keys) -> None:
        """Keep ``run``, ascending and nothing twice, merged with those that are hardly longer."""
        while self.runs and len(self.runs[-1]) <= 2 * len(run):
            # A stable sort finds the two runs and only merges them.
            run = np.sort(np.concatenate((self.runs.pop(), run)), kind="stable")
            run = without_repeats(run)
        if len(run):
            self.runs.append(run)

    def peek(self, count: int) -> _Keys:
        """The first ``count`` keys, or all; ascending, equal ones once."""
        return _unique([run[:count] for run in self.runs])[:count]

    def drop_through(self, key: int) -> None:
        """Take out every key up to ``key``, itself included."""
        rest = [run[np.searchsorted(run, key, "right") :] for run in self.runs]
        self.runs = [run for run in rest if len(run)]


class LruBuckets:
    """Candidates for eviction. Entries may be stale until they are looked at."""

    def __init__(self, num_large: int) -> None:
        self.time = np.zeros(num_large + 1, np.int64)
        # The bucket and the depth of a page's valid entry; what other entries say of it is void.
        self._queued_at = np.full(num_large + 1, _NEVER, np.int64)
        self._depth = np.zeros(num_large + 1, np.int64)
        self._buckets: dict[int, _Bucket] = {}
        self._times: list[int] = []
        self._num_entries = 0

    def start(self, large: Ids) -> None:
        """Pages that were free are taken: nothing has needed them, and nothing is queued."""
        self.time[large] = 0
        self._queued_at[large] = _NEVER

    def touch(self, large: Ids, now: int) -> None:
        """Give ``large`` pages the time ``now``; what is queued is found stale later."""
        self.time[large] = now

    def no_older(self, large: Ids, times: Ids | int) -> None:
        """Give ``large`` pages these times, or leave them later ones; some may be named twice."""
        np.maximum.at(self.time, large, times)

    def add(self, large: Ids) -> None:
        """Queue ``large`` pages at their own times; those queued as early stay where they are."""
        if not len(large):
            return
        times = self.time[large]
        early = times < self._queued_at[large]
        if np.count_nonzero(early) < len(large):  # a third of what `all` takes for a few
            large, times = large[early], times[early]
            if not len(large):
                return
        if self._num_entries > 2 * len(self.time):
            self._drop_void()
        self._queued_at[large] = times
        self._num_entries += len(large)
        first = int(times[0])
        if np.count_nonzero(times == first) == len(times):
            self._bucket(first).fresh.append(large)
            return
        order = np.argsort(times, kind="stable")
        large, times = large[order], times[order]
        of_time = np.split(large, np.flatnonzero(np.diff(times)) + 1)
        for part, time in zip(of_time, without_repeats(times).tolist(), strict=True):
            self._bucket(time).fresh.append(part)

    def _bucket(self, time: int) -> _Bucket:
        if time not in self._buckets:
            self._buckets[time] = _Bucket()
            heapq.heappush(self._times, time)
        return self._buckets[time]

    def pop_oldest(self, wanted: int, candidates: Candidates) -> Ids | None:
        """Take up to ``wanted`` idle pages of the oldest bucket out, those with the longest prefix,
        without those touched since; None when there is none.

        Idle pages touched since are queued again at their new time. A page counts as deep as it
        was when its bucket was last looked at.
        """
        while self._times:
            time = self._times[0]
            bucket = self._buckets[time]
            if not bucket.runs and len(bucket) <= wanted:
                large = self._take_all(bucket, candidates.are_idle)
            else:
                if bucket.fresh:
                    self._sort_fresh(time, bucket, candidates.depths)
                large = self._take_some(time, bucket, wanted, candidates.are_idle)
            if len(large):
                return large
        return None

    def _take_all(self, bucket: _Bucket, are_idle: Callable[[Ids], NDArray[np.bool_]]) -> Ids:
        """The idle pages of the oldest bucket, never sorted, that are still of its time, and the
        bucket with them. All of them go, so their order does not matter."""
        time = heapq.heappop(self._times)
        del self._buckets[time]
        self._num_entries -= len(bucket)
        large = self._still_fresh(time, bucket)
        self._queued_at[large] = _NEVER
        idle = large[are_idle(large)]
        touched = self.time[idle] != time
        if touched.any():
            self.add(idle[touched])
            idle = idle[~touched]
        return idle

    def _take_some(
        self, time: int, bucket: _Bucket, wanted: int, are_idle: Callable[[Ids], NDArray[np.bool_]]
    ) -> Ids:
        """Up to ``wanted`` idle pages of a sorted bucket that are still of its time, in its order;
        none when it has none. Looks at more and more for as long as it finds nothing."""
        looked_at = max(wanted, _LOOKED_AT)
        while not len(large := self._take(time, bucket, wanted, looked_at, are_idle)):
            if not bucket.runs:
                break
            looked_at *= 2
        return large

    def _take(
        self,
        time: int,
        bucket: _Bucket,
        wanted: int,
        looked_at: int,
        are_idle: Callable[[Ids], NDArray[np.bool_]],
    ) -> Ids:
        """The first ``wanted`` idle pages of a sorted bucket that are still of its time, among the
        first ``looked_at``; possibly fewer, or none, while the bucket has more."""
        keys = bucket.peek(looked_at)
        if not len(keys):
            return keys
        large = keys & _ID_MASK
        current = self._is_current(time, keys)
        idle = current & are_idle(large)
        good = idle & (self.time[large] == time)
        chosen = np.flatnonzero(good)[:wanted]
        # What lies before the last chosen page is void, stale or in use, and leaves with it.
        stop = int(chosen[-1]) + 1 if len(chosen) == wanted else len(keys)
        before = len(bucket)
        bucket.drop_through(int(keys[stop - 1]))
        self._num_entries -= before - len(bucket)
        self._queued_at[large[:stop][current[:stop]]] = _NEVER
        touched = (idle & ~good)[:stop]
        if touched.any():
            self.add(large[:stop][touched])
        return large[chosen]

    def _sort_fresh(self, time: int, bucket: _Bucket, depths_of: Callable[[Ids], Ids]) -> None:
        before = len(bucket)
        large = self._still_fresh(time, bucket)
        depths = depths_of(large)
        self._depth[large] = depths
        bucket.fresh = []
        bucket.add_run(np.sort(large - (depths << _ID_BITS)))
        self._num_entries -= before - len(bucket)

    def _still_fresh(self, time: int, bucket: _Bucket) -> Ids:
        """Pages in the bucket of ``time`` that are not sorted yet and not void, each once."""
        parts = [large[self._queued_at[large] == time] for large in bucket.fresh]
        return _unique([part for part in parts if len(part)])

    def _is_current(self, time: int, keys: _Keys) -> NDArray[np.bool_]:
        """Which keys of the bucket of ``time`` are their pages' valid entries."""
        large = keys & _ID_MASK
        return (self._queued_at[large] == time) & (self._depth[large] == -(keys >> _ID_BITS))

    def _drop_void(self) -> None:
        for time, bucket in self._buckets.items():
            runs, bucket.runs = bucket.runs, []
            for run in runs:
                bucket.add_run(run[self._is_current(time, run)])
            if bucket.fresh:
                fresh = np.concatenate(bucket.fresh)
                bucket.fresh = [each_once(fresh[self._queued_at[fresh] == time])]
        self._num_entries = sum(map(len, self._buckets.values()))

    def check(self, reclaimable: Ids) -> None:
        """Recount the entries; raise `CorruptPool` unless every one of the ``reclaimable`` large
        pages, and whatever else is queued, has an entry, those no later than at their own time."""
        agree("times of LRU buckets", sorted(self._times), sorted(self._buckets))
        heap = enumerate(self._times[1:], start=1)
        none(
            "times of LRU buckets out of order",
            [t for i, t in heap if t < self._times[(i - 1) // 2]],
        )
        entries = sum(map(len, self._buckets.values()))
        agree("entries in the LRU buckets", self._num_entries, entries)
        late = reclaimable[self._queued_at[reclaimable] > self.time[reclaimable]]
        none("reclaimable large pages queued later than their time, or not at all", late)
        lost = self._queued_at != _NEVER
        for time, bucket in self._buckets.items():
            for pages in self._valid(time, bucket):
                lost[pages] = False
        none("queued large pages without an entry", np.flatnonzero(lost))

    def _valid(self, time: int, bucket: _Bucket) -> list[Ids]:
        """Pages whose valid entry is in the bucket of ``time``, some twice."""
        parts = [run[self._is_current(time, run)] & _ID_MASK for run in bucket.runs]
        return parts + [large[self._queued_at[large] == time] for large in bucket.fresh]


def _unique(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """All that is in ``parts``, each of which has nothing twice, once."""
    if len(parts) == 1:
        return parts[0]
    return each_once(np.concatenate(parts)) if parts else np.empty(0, np.int64)
