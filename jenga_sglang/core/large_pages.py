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

from jenga_sglang.core.corrupt import agree, distinct, none
from jenga_sglang.core.geometry import Geometry
from jenga_sglang.core.ids import Ids, ceil_div, ends_run

_FEW = 8  # so many ids are counted faster one by one
_NONE: Ids = np.empty(0, np.int64)

_FREE = -1
_RESERVED = -2


class LargePages:
    """Who owns which large page, and how many of its small pages are used and held.

    Small page ids are numbers in the whole buffer: small page ``p`` of group g lies in large
    page ``p // small_per_large[g]``. No method depends on the size of the pool.
    """

    def __init__(self, geometry: Geometry) -> None:
        num_groups = len(geometry.groups)
        self.num_large = geometry.num_large_pages
        self.small_per_large = [geometry.small_per_large(g) for g in range(num_groups)]
        self.owner = np.full(self.num_large + 1, _FREE, np.int16)
        self.owner[0] = _RESERVED
        self.used = np.zeros(self.num_large + 1, np.int64)
        self.held = np.zeros(self.num_large + 1, np.int64)  # used + cached
        # The request that a large page was taken for; placement prefers its other pages.
        self._request = np.zeros(self.num_large + 1, np.int64)
        self._free = np.arange(self.num_large, 0, -1, dtype=np.int64)
        self.num_free = self.num_large
        self.num_owned = [0] * num_groups
        self.num_reclaimable = [0] * num_groups  # owned, nothing used: could be taken back whole
        self.num_used = [0] * num_groups  # small pages
        self.num_held = [0] * num_groups  # small pages
        # Free small pages inside owned large pages, by large page and by request. Empty where
        # a small page is a large page.
        self._holes: list[dict[int, list[int]]] = [{} for _ in range(num_groups)]
        self._holes_of: list[dict[int, dict[int, None]]] = [{} for _ in range(num_groups)]
        # Large pages with used and cached pages side by side, in the order they became so. May
        # be stale: `mixed` looks again. Empty where a small page is a large page.
        self._mixed: list[dict[int, None]] = [{} for _ in range(num_groups)]
        self._slots = [np.arange(k) for k in self.small_per_large]

    def add_group(self, small_per_large: int) -> None:
        """One more group, which owns nothing yet."""
        self.small_per_large.append(small_per_large)
        for counts in (self.num_owned, self.num_reclaimable, self.num_used, self.num_held):
            counts.append(0)
        self._holes.append({})
        self._holes_of.append({})
        self._mixed.append({})
        self._slots.append(np.arange(small_per_large))

    # -- capacity ---------------------------------------------------------------------------

    def num_holes(self, group: int) -> int:
        """Free small pages inside large pages that ``group`` owns already."""
        return self.num_owned[group] * self.small_per_large[group] - self.num_held[group]

    def num_usable(self, group: int) -> int:
        """Free and cached small pages in large pages that ``group`` must keep (some are used)."""
        kept = self.num_owned[group] - self.num_reclaimable[group]
        return kept * self.small_per_large[group] - self.num_used[group]

    def num_missing(self, demand: Sequence[int]) -> int:
        """Large pages short of serving ``demand`` small pages per group without any eviction."""
        needed = 0
        for g, count in enumerate(demand):
            if (fresh := count - self.num_holes(g)) > 0:
                needed += ceil_div(fresh, self.small_per_large[g])
        return needed - self.num_free

    def can_serve(self, demand: Sequence[int]) -> bool:
        """Whether ``demand`` small pages per group fit once everything cached has gone."""
        needed = 0
        for g, count in enumerate(demand):
            if (fresh := count - self.num_usable(g)) > 0:
                needed += ceil_div(fresh, self.small_per_large[g])
        return needed <= self.num_free + sum(self.num_reclaimable)

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
            holes += self._take_holes(group, self._holes[group], missing)
        return (np.concatenate((np.array(holes, np.int64), fresh)) if holes else fresh), large

    def take_each(
        self, counts: Sequence[tuple[int, int]], requests: Sequence[int], *, scarce: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """`take` a few small pages of every (group, count) for each of ``requests`` in turn.

        Returns what `take` does, for every group: the ids of all requests, one after the other.
        The room must be there for all together.
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
                    few += self._take_holes(group, self._holes[group], count - len(few))
                small += few
        for (group, count), (_, large) in zip(counts, taken, strict=True):
            if self.small_per_large[group] == 1:
                self._own(group, np.array(large, np.int64), np.repeat(requests, count), 1)
                self._count_taken(group, len(large))
        return taken

    def _take_preferred_holes(
        self, group: int, count: int, request: int, scarce: bool
    ) -> list[int]:
        """Up to ``count`` holes that go before free large pages."""
        own = self._holes_of[group].get(request)
        holes = self._take_holes(group, own, count) if own else []
        if scarce:
            holes += self._take_holes(group, self._holes[group], count - len(holes))
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
        small = large if per_large == 1 else self.small_of(group, large).ravel()
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
        if not (own := self._holes_of[group].get(request)):
            return 0
        return sum(len(self._holes[group][large]) for large in own)

    def _take_holes(self, group: int, large_pages: Iterable[int], count: int) -> list[int]:
        taken: list[int] = []
        if not count:
            return taken
        for large in list(islice(large_pages, count)):  # each has one at least
            if len(taken) == count:
                break
            holes = self._holes[group][large]
            split = max(0, len(holes) - (count - len(taken)))
            got = holes[split:]
            del holes[split:]
            if not holes:
                self._drop_holes(group, large)
            self.num_reclaimable[group] -= self._is_reclaimable(large)
            self.used[large] += len(got)
            self.held[large] += len(got)
            self.num_used[group] += len(got)
            self.num_held[group] += len(got)
            taken += got
            if self.used[large] < self.held[large]:
                self._mixed[group].setdefault(large)
        return taken

    def cache(self, group: int, small: Ids) -> Ids:
        """Used → cached. Returns the large pages in which nothing is used any more."""
        large, counts = self._by_large(group, small)
        self.used[large] -= counts
        self.num_used[group] -= len(small)
        idle: Ids = large[self.used[large] == 0]
        self.num_reclaimable[group] += len(idle)
        self._note_mixed(group, large)
        return idle

    def use(self, group: int, small: Ids) -> None:
        """Cached → used."""
        large, counts = self._by_large(group, small)
        self.num_reclaimable[group] -= int(np.count_nonzero(self.used[large] == 0))
        self.used[large] += counts
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
        large, counts = self._by_large(group, small)
        self.used[large] -= counts
        self.num_used[group] -= len(small)
        held = self._free_small(group, small, large, counts)
        idle: Ids = held[self.used[held] == 0]
        self.num_reclaimable[group] += len(idle)
        return idle

    def free_cached(self, group: int, small: Ids) -> None:
        """Cached → free."""
        large, counts = self._by_large(group, small)
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
        for page, large in zip(small[left].tolist(), large_pages[left].tolist(), strict=True):
            self._add_holes(group, large, [page])
        for large in empty.tolist():
            if large in self._holes[group]:
                self._drop_holes(group, large)

    def _add_holes(self, group: int, large: int, small: list[int]) -> None:
        self._holes[group].setdefault(large, []).extend(small)
        self._holes_of[group].setdefault(int(self._request[large]), {})[large] = None

    def _drop_holes(self, group: int, large: int) -> None:
        del self._holes[group][large]
        request = int(self._request[large])
        of_request = self._holes_of[group][request]
        del of_request[large]
        if not of_request:
            del self._holes_of[group][request]

    # -- helpers ----------------------------------------------------------------------------

    def large_of(self, group: int, small: Ids) -> Ids:
        """The large page that each small page lies in."""
        per_large = self.small_per_large[group]
        return small if per_large == 1 else small // per_large

    def small_of(self, group: int, large: Ids) -> Ids:
        """The small pages of each large page, (large, small per large)."""
        per_large = self.small_per_large[group]
        return large[:, None] if per_large == 1 else large[:, None] * per_large + self._slots[group]

    def _by_large(self, group: int, small: Ids) -> tuple[Ids, Ids | int]:
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

    def _is_reclaimable(self, large: int) -> bool:
        return bool(self.used[large] == 0 and self.held[large] > 0)

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
        self._check_holes(g, owned[held < per_large].tolist())

    def _check_holes(self, g: int, with_holes: list[int]) -> None:
        all_holes, per_large = self._holes[g], self.small_per_large[g]
        none(f"group {g}: large pages with holes that are not listed", {*with_holes} ^ {*all_holes})
        of_requests = [large for pages in self._holes_of[g].values() for large in pages]
        agree(f"group {g}: large pages with holes", sorted(of_requests), sorted(all_holes))
        for large, holes in all_holes.items():
            missing = per_large - int(self.held[large])
            agree(f"group {g}: holes in large page {large}", len(holes), missing)
            agree(f"group {g}: distinct holes in large page {large}", len({*holes}), missing)
            outside = [p for p in holes if p // per_large != large]
            none(f"group {g}: holes of large page {large} that lie elsewhere", outside)
