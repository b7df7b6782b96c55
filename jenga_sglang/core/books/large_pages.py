"""The two-level allocator: large pages move between groups, small pages live inside them.

A small page is *used* (pinned by a running request), *cached* (held only by the prefix tree) or
*free*. Conservation, recounted by `LargePages.check` from the arrays and never from counters::

    free_large + Σ_g owned_large[g] == num_large
    used + cached + free == small_per_large[g]        inside every large page that g owns

A large page returns to the common pool the moment its last small page is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.capacity import Capacity
from jenga_sglang.core.books.corrupt import agree, distinct, none
from jenga_sglang.core.books.holes import Holes
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.ids import Ids, ceil_div

_NONE: Ids = np.empty(0, np.int64)

_FREE = -1
_RESERVED = -2


class LargePages(Capacity):
    """Who owns which large page, and how many of its small pages are used and held.

    No method depends on the size of the pool.
    """

    def __init__(self, geometry: Geometry) -> None:
        num_groups = len(geometry.groups)
        self.num_large = geometry.num_large_pages
        super().__init__([geometry.small_per_large(g) for g in range(num_groups)], self.num_large)
        self.owner = np.full(self.num_large + 1, _FREE, np.int16)
        self.owner[0] = _RESERVED
        self.used = np.zeros(self.num_large + 1, np.int64)
        self.held = np.zeros(self.num_large + 1, np.int64)  # used + cached
        # The request that a large page was taken for; placement prefers its other pages.
        self._request = np.zeros(self.num_large + 1, np.int64)
        self._free = np.arange(self.num_large, 0, -1, dtype=np.int64)
        # Empty where a small page is a large page.
        self.holes = [Holes() for _ in range(num_groups)]
        # Large pages with used and cached pages side by side, in the order they became so. May
        # be stale: `mixed` looks again. Empty where a small page is a large page.
        self._mixed: list[dict[int, None]] = [{} for _ in range(num_groups)]

    def add_group(self, small_per_large: int) -> None:
        """One more group, which owns nothing yet."""
        super().add_group(small_per_large)
        self.holes.append(Holes())
        self._mixed.append({})

    # -- transitions ------------------------------------------------------------------------

    def take(
        self, group: int, count: int, request: int, *, scarce: bool = False
    ) -> tuple[Ids, Ids]:
        """Turn ``count`` free small pages into used ones of ``group``; return their ids, and those
        of the large pages that were free before.

        Order (Jenga §5.4): holes in large pages taken for the same request, free large pages,
        holes in anybody's large pages; ``scarce`` puts free large pages last, so that another
        group can still have them. Raises ``MemoryError`` and changes nothing when there are too
        few; what is merely cached must have been evicted before.
        """
        if count > self.num_holes(group) + self.num_free * self.small_per_large[group]:
            raise MemoryError(f"group {group}: {count} small pages were never reserved")
        holes = self._take_preferred_holes(group, count, request, scarce)
        if len(holes) == count:
            return np.array(holes, np.int64), _NONE
        fresh, large = self._take_free_large(group, count - len(holes), request)
        if missing := count - len(holes) - len(fresh):
            holes += self._take_holes(group, self.holes[group].in_large, missing)
        return (np.concatenate((np.array(holes, np.int64), fresh)) if holes else fresh), large

    def take_each(
        self, counts: Sequence[tuple[int, int]], requests: Sequence[int], *, scarce: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """`take` a few small pages of every (group, count) for each of ``requests`` in turn.

        Returns what `take` does, for every group: the ids of all requests, one after the other.
        The room must be there for all together; without ``scarce``, in their own holes and in free
        large pages, as `Evictor.make_room` leaves it.
        """
        taken: list[tuple[list[int], list[int]]] = [([], []) for _ in counts]
        most = len(requests) * sum([count for _, count in counts])
        next_free = self._free[max(0, self.num_free - most) : self.num_free].tolist()
        for request in requests:
            for (group, count), (small, large) in zip(counts, taken, strict=True):
                if self.small_per_large[group] == 1:  # no holes, and owned together below
                    opened = [next_free.pop() for _ in range(count)]
                    self.num_free -= count
                    small += opened
                    large += opened
                    continue
                few = self._take_preferred_holes(group, count, request, scarce)
                while len(few) < count and self.num_free:
                    large.append(next_free.pop())
                    few += self._open_large(group, count - len(few), request)
                if len(few) < count:
                    few += self._take_holes(group, self.holes[group].in_large, count - len(few))
                small += few
        for (group, count), (_, large) in zip(counts, taken, strict=True):
            if self.small_per_large[group] == 1:
                each = np.array(requests, np.int64).repeat(count)
                self._own(group, np.array(large, np.int64), each, 1)
                self._count_taken(group, len(large))
        return taken

    def _take_preferred_holes(
        self, group: int, count: int, request: int, scarce: bool
    ) -> list[int]:
        """Up to ``count`` holes that go before free large pages."""
        own = self.holes[group].of_request.get(request)
        holes = self._take_holes(group, own, count) if own else []
        if scarce:
            holes += self._take_holes(group, self.holes[group].in_large, count - len(holes))
        return holes

    def _open_large(self, group: int, count: int, request: int) -> list[int]:
        """Up to ``count`` small pages of the next free large page, now used."""
        per_large = self.small_per_large[group]
        count = min(count, per_large)
        large = int(self._pop_free(1)[0])
        self._own(group, large, request, count)
        self._count_taken(group, count)
        first = large * per_large
        if count < per_large:
            self._add_holes(group, large, list(range(first + count, first + per_large)))
        return list(range(first, first + count))

    def _take_free_large(self, group: int, count: int, request: int) -> tuple[Ids, Ids]:
        per_large = self.small_per_large[group]
        large = self._pop_free(ceil_div(count, per_large))
        self._own(group, large, request, per_large)
        if per_large == 1:
            self._count_taken(group, len(large))
            return large, large
        small = self.small_of(group, large).ravel()
        if holes := small[count:].tolist():
            last = int(large[-1])
            self.used[last] = self.held[last] = per_large - len(holes)
            self._add_holes(group, last, holes)
            small = small[:count]
        self._count_taken(group, len(small))
        return small, large

    def _pop_free(self, count: int) -> Ids:
        """``count`` free large pages, or as many as there are; `_own` them."""
        stop = self.num_free
        self.num_free = max(0, stop - count)
        return self._free[self.num_free : stop][::-1].copy()

    def _own(self, group: int, large: Ids | int, request: Ids | int, used: int) -> None:
        """``group`` owns ``large`` from now on, for ``request``, with ``used`` small pages each."""
        self.owner[large] = group
        self._request[large] = request
        self.used[large] = self.held[large] = used
        self.num_owned[group] += len(large) if isinstance(large, np.ndarray) else 1

    def _count_taken(self, group: int, small: int) -> None:
        self.num_used[group] += small
        self.num_held[group] += small

    def num_holes_of(self, group: int, request: int) -> int:
        """Free small pages inside the large pages that were taken for ``request``."""
        return self.holes[group].num_of(request)

    def _take_holes(self, group: int, large_pages: Iterable[int], count: int) -> list[int]:
        taken: list[int] = []
        if not count:
            return taken
        for large in list(islice(large_pages, count)):  # each has one at least
            if len(taken) == count:
                break
            request, used, held = (of.item(large) for of in (self._request, self.used, self.held))
            got = self.holes[group].take(large, request, count - len(taken))
            self.num_reclaimable[group] -= not used
            self.used[large] = used + len(got)
            self.held[large] = held + len(got)
            taken += got
            if used < held:
                self._mixed[group].setdefault(large)
        self.num_used[group] += len(taken)
        self.num_held[group] += len(taken)
        return taken

    def cache(self, group: int, small: Ids) -> Ids:
        """Used → cached. Returns the large pages in which nothing is used any more."""
        large, counts = self.by_large(group, small)
        self.used[large] -= counts
        self.num_used[group] -= len(small)
        idle: Ids = large[self.used[large] == 0]
        self.num_reclaimable[group] += len(idle)
        self._note_mixed(group, large)
        return idle

    def use(self, group: int, small: Ids) -> None:
        """Cached → used."""
        large, counts = self.by_large(group, small)
        used = self.used[large]
        self.num_reclaimable[group] -= len(large) - int(np.count_nonzero(used))
        self.used[large] = used + counts
        self.num_used[group] += len(small)
        self._note_mixed(group, large)

    def mixed(self, group: int) -> list[int]:
        """Large pages of ``group`` with used and cached pages side by side, oldest first."""
        mixed = {
            large: None
            for large in self._mixed[group]
            if self.owner[large] == group and 0 < self.used[large] < self.held[large]
        }
        self._mixed[group] = mixed
        return list(mixed)

    def _note_mixed(self, group: int, large_pages: Ids) -> None:
        if self.small_per_large[group] == 1:
            return
        used = self.used[large_pages]
        for large in large_pages[(used > 0) & (used < self.held[large_pages])].tolist():
            self._mixed[group].setdefault(large)

    def free_used(self, group: int, small: Ids) -> Ids:
        """Used → free. Returns the large pages that still hold cached pages but nothing used."""
        large, counts = self.by_large(group, small)
        self.used[large] -= counts
        self.num_used[group] -= len(small)
        held = self._free_small(group, small, large, counts)
        idle: Ids = held[self.used[held] == 0]
        self.num_reclaimable[group] += len(idle)
        return idle

    def free_cached(self, group: int, small: Ids) -> None:
        """Cached → free."""
        large, counts = self.by_large(group, small)
        held = self._free_small(group, small, large, counts)
        self.num_reclaimable[group] -= len(large) - len(held)

    def _free_small(self, group: int, small: Ids, large: Ids, counts: Ids | int) -> Ids:
        """Free ``small``, and the large pages that this empties; returns the rest of ``large``.
        How many pages are used or reclaimable is for the caller to say."""
        self.held[large] -= counts
        self.num_held[group] -= len(small)
        still_held = self.held[large] > 0
        empty = large[~still_held]
        if self.small_per_large[group] > 1:
            self._record_holes(group, small, empty)
        self.owner[empty] = _FREE
        self._free[self.num_free : self.num_free + len(empty)] = empty[::-1]
        self.num_free += len(empty)
        self.num_owned[group] -= len(empty)
        return large[still_held]

    def _record_holes(self, group: int, small: Ids, empty: Ids) -> None:
        large_pages = self.large_of(group, small)
        left = self.held[large_pages] > 0
        holes, request = self.holes[group], self._request.item
        for page, large in zip(small[left].tolist(), large_pages[left].tolist(), strict=True):
            holes.add(large, request(large), [page])
        for large in empty.tolist():
            holes.drop(large, request(large))

    def _add_holes(self, group: int, large: int, small: list[int]) -> None:
        self.holes[group].add(large, self._request.item(large), small)

    def are_reclaimable(self, large: Ids) -> NDArray[np.bool_]:
        """Which large pages hold cached pages and nothing that is used."""
        idle: NDArray[np.bool_] = (self.used[large] == 0) & (self.held[large] > 0)
        return idle

    def reclaimable(self) -> Ids:
        """All large pages that hold cached pages and nothing used; goes through the whole pool."""
        return np.flatnonzero((self.used == 0) & (self.held > 0))

    def check(self) -> None:
        """Recount everything; raise `CorruptPool` at the first difference."""
        free = self._free[: self.num_free]
        distinct("free large pages", free, self.num_large + 1)
        none("free large pages with an owner", free[self.owner[free] != _FREE])
        none("free large pages that hold something", free[self.held[free] != 0])
        for g in range(len(self.small_per_large)):
            self._check_group(g, np.flatnonzero(self.owner == g))
        owned = int(np.count_nonzero(self.owner >= 0))
        agree("large pages free or owned", self.num_free + owned, self.num_large)

    def _check_group(self, g: int, owned: Ids) -> None:
        used, held, per_large = self.used[owned], self.held[owned], self.small_per_large[g]
        none(f"group {g}: large pages owned without a small page", owned[held <= 0])
        none(f"group {g}: large pages with more used than held", owned[(used > held) | (used < 0)])
        none(f"group {g}: large pages that hold more than {per_large}", owned[held > per_large])
        agree(f"group {g}: owned large pages", self.num_owned[g], len(owned))
        agree(f"group {g}: used small pages", self.num_used[g], int(used.sum()))
        agree(f"group {g}: held small pages", self.num_held[g], int(held.sum()))
        idle = int(np.count_nonzero(used == 0))
        agree(f"group {g}: reclaimable large pages", self.num_reclaimable[g], idle)
        missing = per_large - held
        missing_in = dict(zip(owned.tolist(), missing.tolist(), strict=True))
        self.holes[g].check(f"group {g}", per_large, {p: n for p, n in missing_in.items() if n > 0})
