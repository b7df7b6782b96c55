"""What goes when room is needed: the order of eviction, and what falls with a page.

Whole large pages first (Jenga §5.4), least recently used; among equal times the page with the
longest prefix, in every group alike. Evicting a page that every longer history needs puts all
below it out of reach, so that goes too, in every group; a page that only some lengths need costs
only the hits of those lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.books.lru import Candidates
from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.books.tree import Node, PrefixTree
from jenga_sglang.core.ids import Ids, ceil_div, each_once
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.ranges import Range
from jenga_sglang.core.running import Counters, Running

# Large pages emptied ahead of need, so that a full pool does not evict page by page: at most so
# many, and at most this part of the pool.
MAX_AHEAD = 32
AHEAD_SHARE = 512

REMEMBERED = 1 << 10  # demands

# Of a group and the pages of an encoder in front of a history: what every one needs that has it.
Permanent = Callable[[int, int], Sequence[Range]]


class Evictor:
    """``permanent`` answers as `Needs.permanent` does."""

    def __init__(
        self,
        memory: Memory,
        tree: PrefixTree,
        permanent: Permanent,
        counters: Counters,
        policy: CachePolicy,
    ) -> None:
        self.memory = memory
        self.names = memory  # whose virtual pages are what is forgotten
        self.tree = tree
        self.permanent = permanent
        self.counters = counters
        self.policy = policy
        self._candidates = Candidates(self._depths, memory.large.are_reclaimable)
        # The same few demands are asked about again and again.
        self._large_alone = lru_cache(REMEMBERED)(self._count_large_alone)
        self._ahead = min(MAX_AHEAD, memory.large.num_large // AHEAD_SHARE)

    def make_room(
        self, demands: Sequence[tuple[Running, tuple[int, ...]]], demand: Sequence[int]
    ) -> bool:
        """Evict until the ``demands`` of requests, small pages per group that come to ``demand``
        together, fit; that they can fit is known. Returns whether memory is scarce.

        Whole large pages for every request keep tenants apart. Where there are too few, holes in
        the pages of others come first, so that no group takes what only another can use.
        """
        apart = self.policy.request_aware and self.policy.whole_large_pages
        scarce = not (apart and self._make_preferred_room(demands))
        if scarce:
            self.make_any_room(demand)
        return scarce

    def _make_preferred_room(self, demands: Sequence[tuple[Running, tuple[int, ...]]]) -> bool:
        large = self.memory.large
        if sum([self._large_alone(own) for _, own in demands]) <= large.num_free:
            return True
        while True:
            # Evicting can take a request's own holes along, so this is asked anew afterwards: not
            # after every step, for it takes as long as the batch is.
            preferred = sum(self._preferred_large(running, own) for running, own in demands)
            if preferred <= large.num_free:
                return True
            if preferred > large.available:
                return False
            self._evict_until_free(preferred + self._ahead)
            if preferred > large.num_free:
                return False

    def _evict_until_free(self, wanted: int) -> None:
        large = self.memory.large
        while (missing := wanted - large.num_free) > 0:
            if not self.evict_large(missing):
                return

    def _count_large_alone(self, demand: tuple[int, ...]) -> int:
        """Large pages that ``demand`` takes when it goes into no holes at all."""
        per_large = self.memory.large.small_per_large
        return sum([ceil_div(count, k) for count, k in zip(demand, per_large, strict=True)])

    def _preferred_large(self, running: Running, demand: tuple[int, ...]) -> int:
        """Large pages that ``demand`` takes when it goes into no other request's holes."""
        large = self.memory.large
        total = 0
        for g, count in enumerate(demand):
            small = max(0, count - large.num_holes_of(g, running.number))
            total += ceil_div(small, large.small_per_large[g])
        return total

    def make_any_room(self, demand: Sequence[int]) -> None:
        """Evict until ``demand`` small pages per group fit, wherever they are."""
        large = self.memory.large
        if not self.policy.whole_large_pages:
            self._evict_beside_used(demand)
        while (missing := large.shortfall(demand)) > 0:
            if not self.evict_large(missing):
                break
        self._evict_beside_used(demand)

    def _evict_beside_used(self, demand: Sequence[int]) -> None:
        """Last resort: evict single cached pages in large pages that something still uses."""
        large = self.memory.large
        for g, count in enumerate(demand):
            while large.shortfall(demand) > 0 and count > large.num_holes(g) and large.mixed(g):
                short = count - large.num_holes(g)
                self.evict_pages(g, self._mixed_tenants(g, short))

    def _mixed_tenants(self, group: int, count: int) -> Ids:
        """Cached pages of ``group`` with at least ``count`` small pages between them, in large
        pages that also hold used ones, least recently mixed first."""
        memory = self.memory
        found: list[Ids] = []
        for large in memory.large.mixed(group):
            tenants = each_once(memory.tenants(group, np.array([large], np.int64)).ravel())
            cached = tenants[(tenants != 0) & (memory.pins[group][tenants] == 0)]
            found.append(cached)
            count -= len(cached)
            if count <= 0:
                break
        if not found:
            raise CorruptPool(f"group {group}: nothing cached is left beside used pages")
        return each_once(np.concatenate(found))

    def evict_large(self, wanted: int) -> bool:
        """Empty up to ``wanted`` of the least recently used large pages that hold only cached
        pages; among equal times the one that serves the longest prefix. False when there is none.
        """
        chosen = self._oldest(wanted)
        if not len(chosen):
            return False
        owners = self.memory.large.owner[chosen]
        for g in range(self.memory.num_groups):
            tenants = self.memory.tenants(g, chosen[owners == g]).ravel()
            if len(tenants):
                self.evict_pages(g, each_once(tenants[tenants != 0]))
        return True

    def _oldest(self, wanted: int) -> Ids:
        parts = []
        while wanted > 0:
            large = self.memory.lru.pop_oldest(wanted, self._candidates)
            if large is None:
                break
            parts.append(large)
            wanted -= len(large)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _depths(self, large: Ids) -> Ids:
        depths = np.zeros(len(large), np.int64)
        if not self.policy.aligned:
            return depths
        owners = self.memory.large.owner[large]
        for g in range(self.memory.num_groups):
            of_group = owners == g
            if of_group.any():
                tenants = self.memory.tenants(g, large[of_group])
                depths[of_group] = self.memory.depth[tenants].max(axis=1)
        return depths

    def evict(self, pages: int) -> int:
        """Evict until ``pages`` virtual pages are free that were not; how many it came to."""
        before = self.names.num_free_virtual
        while (missing := before + pages - self.names.num_free_virtual) > 0:
            if not self.evict_large(missing):
                break
        return self.names.num_free_virtual - before

    def make_names(self, pages: int) -> bool:
        """Evict until there are ids for ``pages`` virtual pages; whether there are. They can only
        run out where a group that depends on everything has been retired: a request keeps the ids
        of pages that it has let go of in every group."""
        missing = pages - self.names.num_free_virtual
        return missing <= 0 or self.evict(missing) >= missing

    def evict_pages(self, group: int, virtual: Ids) -> None:
        """Drop cached pages of ``group``, and in every group what nobody can reach without them."""
        virtual = self.drop(group, virtual)
        self.counters.evicted[group] += len(virtual)
        permanent = self._is_lost_for_ever(group, virtual)
        if permanent.any():
            self._cascade(virtual[permanent])
            virtual = virtual[~permanent]
        self.forget_hollow(virtual)

    def drop(self, group: int, virtual: Ids) -> Ids:
        """Free cached pages of ``group``, and nothing else; passes over those it does not hold, and
        returns the others."""
        virtual = self.memory.drop(group, virtual)
        self.tree.change(self.tree.nodes_of(virtual))
        return virtual

    def _is_lost_for_ever(self, group: int, virtual: Ids) -> NDArray[np.bool_]:
        """Which pages, no longer held by ``group``, every longer history would need."""
        depth, encoder_pages = self.memory.depth[virtual], self.memory.encoder_pages[virtual]
        if not encoder_pages.any():  # as nearly always
            return _are_within(depth, self.permanent(group, 0))
        permanent = np.zeros(len(virtual), np.bool_)
        for pages in each_once(encoder_pages).tolist():
            within = _are_within(depth, self.permanent(group, pages))
            permanent |= (encoder_pages == pages) & within
        return permanent

    def _cascade(self, virtual: Ids) -> None:
        for node in sorted(self.tree.nodes_of(virtual), key=lambda n: n.start):
            if not self.tree.is_alive(node):
                continue
            of_node = virtual[self.tree.is_in(node, virtual)]
            index = int(self.memory.depth[of_node].min()) - node.start
            node, index = self._first_dead(node, index)
            unreachable = self.tree.below(node, index)
            for g in range(self.memory.num_groups):
                self._drop_unreachable(g, unreachable)
            self.tree.cut(node, index)
            self.names.forget(unreachable)

    def _drop_unreachable(self, group: int, virtual: Ids) -> None:
        self.counters.cascaded[group] += len(self.memory.drop(group, virtual))

    def _first_dead(self, node: Node, index: int) -> tuple[Node, int]:
        """The first page, in its node, that is of no use without page ``index`` of ``node``: what
        an encoder made is of use as a whole or not at all."""
        if node.start + index >= node.encoder_pages or self._is_pinned(node.pages[:index]):
            return node, index
        parent = node.parent
        while parent and parent.parent and len(parent.children) == 1:
            if self._is_pinned(parent.pages):
                break
            node, parent = parent, parent.parent
        return node, 0

    def _is_pinned(self, virtual: Ids) -> bool:
        return bool(self.names.pins[-1][virtual].any())

    def forget_hollow(self, virtual: Ids) -> None:
        """Take out of the tree those pages that no group holds anything of and nobody pins."""
        hollow = self.names.hollow(virtual)
        if len(hollow):
            self.tree.hollow_out(hollow)
            self.names.forget(hollow)


def _are_within(depths: Ids, ranges: Sequence[Range]) -> NDArray[np.bool_]:
    """Which ``depths``, in pages, lie in one of the page ``ranges``."""
    within = np.zeros(len(depths), np.bool_)
    for start, stop in ranges:
        within |= (depths >= start) & (depths < stop)
    return within
