"""A manager of two tiers: what it decides beyond one pool.

One more step in a request's life, after the match::

    device, whole = manager.match_tiers(namespace, tokens)
    running = manager.load(whole, beside)    locked, with what the host alone held of it loaded;
                                             None: go on with manager.lock(device)
    manager.tiers.take_copies()              to be copied in order, before the pool is written to

A hit of both tiers is the longest prefix of which every group has all it needs on the device or in
the host. What is loaded of it is, by group, what the next token needs and the device lacks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import ceil
from typing import Any

import numpy as np

from jenga_sglang.core.books.corrupt import none
from jenga_sglang.core.books.memory import Memory, default_virtual_pages
from jenga_sglang.core.books.tiers import EitherTier, TieredMemory
from jenga_sglang.core.books.tree import Path, Tokens
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.eviction import Evictor
from jenga_sglang.core.fetching import Fetching
from jenga_sglang.core.ids import Ids, ceil_div
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.needs import History
from jenga_sglang.core.recency import Place
from jenga_sglang.core.recount import check_places
from jenga_sglang.core.running import Hit, Running
from jenga_sglang.core.tiers import DeviceEvictor, HostEvictor, TierCounters, Tiers, WritePolicy


class TieredManager(Manager):
    """Decides for a pool and host memory of ``host_bytes`` below it, cut alike."""

    memory: TieredMemory

    def __init__(
        self,
        geometry: Geometry,
        *,
        host_bytes: int,
        write_policy: WritePolicy = WritePolicy.BACK,
        **kwargs: Any,
    ) -> None:
        self.host_geometry = geometry.resized(host_bytes)
        self.write_policy = write_policy
        self.tier_counters = TierCounters()
        super().__init__(geometry, **kwargs)

    def reset(self) -> None:
        super().reset()
        self._histories_of_tiers: dict[int, History] = {}
        self.fetching = Fetching(self.memory, self.tree, self.needs, self.tiers)

    def _new_memory(self) -> Memory:
        # A page is held in one tier at least, so they count together.
        both = self.geometry.resized(self.geometry.pool_bytes + self.host_geometry.pool_bytes)
        num_virtual = default_virtual_pages(both, self.max_requests, self.max_length)
        return TieredMemory(self.geometry, self.host_geometry, num_virtual, self.max_requests)

    def _new_evictor(self) -> Evictor:
        books = self.memory, self.tree, self.needs.permanent, self.counters, self.policy
        self.tiers = Tiers(self.memory, HostEvictor(*books), self.tier_counters)
        return DeviceEvictor(*books, self.tiers)

    @property
    def memories(self) -> list[Memory]:
        return [self.memory, self.memory.host]

    # -- hits of both tiers -------------------------------------------------------------------

    def match_tiers(self, namespace: Hashable, tokens: Tokens) -> tuple[Hit, Hit]:
        """The longest prefix of ``tokens`` that every group can continue from with what is on the
        device, and with what is there or in the host. The same object when the host adds nothing.
        """
        if not self.prefix_cache:
            hit = self.miss(namespace)
            return hit, hit
        path = self.tree.find(namespace, tokens)
        device, whole = self.hit_of(path), self._whole_hit(path)
        return device, whole if whole.path.num_pages > device.path.num_pages else device

    def _whole_hit(self, path: Path) -> Hit:
        encoder_pages = path.node.encoder_pages
        if encoder_pages not in self._histories_of_tiers:
            history = History(self.needs, EitherTier(self.memory), encoder_pages)
            self._histories_of_tiers[encoder_pages] = history
        history = self._histories_of_tiers[encoder_pages]
        num_pages, cut_by = history.longest_hit(self.tree.pages(path))
        return Hit(Path(path.node, num_pages), path.num_pages, cut_by)

    def places_of(self, path: Path) -> list[Place]:
        hit = self._whole_hit(path).path
        pages, history = self.tree.pages(hit), self._histories_of_tiers[path.node.encoder_pages]
        places: list[Place] = []
        for g in self.needs.groups:
            for start, stop in history.pages(g, len(pages) * self.page_size):
                for tier in self.memories:
                    held = pages[start:stop][tier.holds(g, pages[start:stop])]
                    places.append((tier.lru, tier.large_pages(g, held)))
        return places

    def lost_tokens(self, saved_tokens: int, large_pages: float) -> int:
        """It is written to the host and loaded again, unless computing it takes less."""
        num_bytes = ceil(2 * large_pages * self.geometry.large_page_bytes)
        copying = self.prices.tokens_for(num_bytes)
        return saved_tokens if copying is None else min(saved_tokens, copying)

    def load(
        self, hit: Hit, beside: Sequence[int] = (), *, spared_tokens: int | None = None
    ) -> Running | None:
        """Pin what a request that continues from ``hit`` of both tiers needs, and load what only
        the host holds of it. The room must leave enough for ``beside`` pages per group.

        None when there is less than that, or less in the tiers by now than the hit says, or when
        the ``spared_tokens`` are computed in less time: no more than what is merely cached has
        changed then.
        """
        if not self._is_whole(hit):
            return None
        running = self._begin(hit)
        present, missing = self._pin_for_load(running)
        is_worth = spared_tokens is None or self._is_worth(missing, spared_tokens)
        loads = is_worth and self._leaves_room(missing, beside)
        if loads:
            self._load(running, missing)
            self._register(running)
        for g, pages in enumerate(missing):
            self.memory.host.unpin(g, pages)
        if not loads:
            self._unpin(running, present)
            self.tier_counters.declined_loads += is_worth
            self.tier_counters.not_worth_loads += not is_worth
            return None
        return running

    def _is_worth(self, missing: Sequence[Ids], spared_tokens: int) -> bool:
        groups = self.geometry.groups
        sizes = [len(v) * cut.page_bytes for v, cut in zip(missing, groups, strict=True)]
        return self.prices.is_worth(sum(sizes), spared_tokens)

    def _is_whole(self, hit: Hit) -> bool:
        node, num_pages = hit.path.node, hit.path.num_pages
        if not self.tree.is_alive(node) or num_pages > node.stop:
            return False
        return self._whole_hit(hit.path).path.num_pages == num_pages

    def _pin_for_load(self, running: Running) -> tuple[list[Ids], list[Ids]]:
        """Pin what ``running`` needs of each group where it is: on the device, else in the host."""
        present, missing = [], []
        for g, ranges in enumerate(running.held):
            needed = np.concatenate([np.empty(0, np.int64), *running.of(ranges)])
            there = self.memory.holds(g, needed)
            present.append(needed[there])
            missing.append(needed[~there])
            self.memory.pin(g, present[g])
            self.memory.host.pin(g, missing[g])
        return present, missing

    def _leaves_room(self, missing: Sequence[Ids], beside: Sequence[int]) -> bool:
        """Whether ``missing`` pages fit and leave room for ``beside`` pages per group.

        Where they go is not known yet: holes that they leave to others may be the wrong group's.
        So they count as if none went into a hole, and one large page more where some may.
        """
        large, stripes = self.memory.large, self.memory.stripes
        needed = 0
        for count, k in zip(self._small_pages(missing), large.small_per_large, strict=True):
            needed += ceil_div(count, k) + (count > 0 and k > 1)
        pages = beside or [0] * len(missing)
        needed += large.large_needed([n * s for n, s in zip(pages, stripes, strict=True)])
        return needed <= large.available

    def _small_pages(self, pages: Sequence[Ids]) -> tuple[int, ...]:
        return tuple([len(v) * s for v, s in zip(pages, self.memory.stripes, strict=True)])

    def _load(self, running: Running, missing: Sequence[Ids]) -> None:
        demand = self._small_pages(missing)
        scarce = self.evictor.make_room([(running, demand)], demand)
        for g, pages in enumerate(missing):
            if len(pages):
                self.tree.change(self.tree.nodes_of(pages))
                self.tiers.load(g, pages, running.number, scarce=scarce)

    def _unpin(self, running: Running, present: Sequence[Ids]) -> None:
        for g, pages in enumerate(present):
            self.memory.unpin(g, pages)
        self.evictor.forget_hollow(self.memory.unpin_virtual(running.row))

    # -- what is written ----------------------------------------------------------------------

    def publish(
        self,
        running: Running,
        namespace: Hashable,
        tokens: Tokens,
        keep: Sequence[int] | None = None,
    ) -> None:
        super().publish(running, namespace, tokens, keep)
        if self.write_policy is WritePolicy.THROUGH and self.prefix_cache:
            self._write(running, running.tree_pages, running.kept)

    def use_hit(self, running: Running) -> None:
        is_first = not running.touched
        super().use_hit(running)
        if is_first and self.write_policy is WritePolicy.SELECTIVE:
            pages = running.num_pages
            self._write(running, pages, [pages * self.page_size])

    def _write(self, running: Running, num_pages: int, lengths: Sequence[int]) -> None:
        """Write what hits of ``lengths`` tokens and every longer history need of the first
        ``num_pages`` pages of ``running``, all in the tree."""
        for g in self.needs.groups:
            for start, stop in running.history.pages_of_hits(g, num_pages, lengths):
                self.tiers.write(g, running.pages[start:stop])

    # -- books --------------------------------------------------------------------------------

    def names_aside(self) -> Ids:
        names = [fetch.names for fetch in self.fetching.under_way]
        return np.concatenate([super().names_aside(), *names])

    def check_idle(self) -> None:
        super().check_idle()
        none("pages that are still being read from storage", self.names_aside())

    def check(self) -> None:
        super().check()
        memory, host = self.memory, self.memory.host
        check_places(host)
        known = memory.in_tree.copy()
        known[self.names_aside()] = True
        for g, table in enumerate(host.table):
            held = np.flatnonzero(table[:, 0])
            none(f"host, group {g}: pages that are not in the tree", held[~known[held]])
