"""What goes to host memory and what comes back: decisions in whole small pages.

Written is what some kept hit needs: pages that every longer history needs, the last window before a
kept length, the snapshot at it. Whatever else a prompt computed is never copied. When, is for the
`WritePolicy` to say; but a wanted page that the host lacks is always written before it leaves the
device. A page counts as copied from the moment the copy is decided: whoever copies keeps to the
order of `Tiers.take_copies`, so ranks need not tell one another when one has ended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.books.tiers import TieredMemory
from jenga_sglang.core.books.tree import PrefixTree
from jenga_sglang.core.eviction import Evictor, Permanent
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Counters


class WritePolicy(Enum):
    """When a page is written that is worth a place in the host: as soon as it is in the tree, as
    soon as a second request has come by, or when it leaves the device."""

    THROUGH = "write_through"
    SELECTIVE = "write_through_selective"
    BACK = "write_back"


@dataclass(frozen=True)
class PageCopy:
    """Small pages of ``group`` to be copied, ``device[i]`` to or from ``host[i]``: those of
    ``virtual`` pages, in order, each page's stripes together."""

    group: int
    virtual: Ids
    device: Ids
    host: Ids
    to_host: bool


@dataclass
class TierCounters:
    """What happened so far, in pages of tokens by group unless the name says otherwise."""

    written: Counter[int] = field(default_factory=Counter)
    loaded: Counter[int] = field(default_factory=Counter)
    not_written: Counter[int] = field(default_factory=Counter)  # for want of room in the host
    host_hit_tokens: int = 0  # that came from the host, or were of use only with what did
    declined_loads: int = 0  # hits whose load did not fit
    not_worth_loads: int = 0  # hits that are computed in less time than they are loaded


class HostEvictor(Evictor):
    """Makes room in the host. A page that is on the device as well is not lost."""

    def __init__(
        self,
        memory: TieredMemory,
        tree: PrefixTree,
        permanent: Permanent,
        counters: Counters,
        policy: CachePolicy,
    ) -> None:
        super().__init__(memory.host, tree, permanent, Counters(), policy)
        self.names = self._device = memory
        self._device_counters = counters

    def _is_lost_for_ever(self, group: int, virtual: Ids) -> NDArray[np.bool_]:
        return super()._is_lost_for_ever(group, virtual) & ~self._device.holds(group, virtual)

    def _drop_unreachable(self, group: int, virtual: Ids) -> None:
        super()._drop_unreachable(group, virtual)
        self._device_counters.cascaded[group] += len(self._device.drop(group, virtual))


class Tiers:
    """Writes to the host of ``memory``, and notes what is to be copied."""

    def __init__(self, memory: TieredMemory, evictor: HostEvictor, counters: TierCounters) -> None:
        self.memory = memory
        self.host = memory.host
        self.evictor = evictor
        self.counters = counters
        self._copies: list[PageCopy] = []

    def take_copies(self) -> list[PageCopy]:
        """What is to be copied, in this order, before anything else writes to pages of the pool;
        it is the caller's to do now."""
        copies, self._copies = self._copies, []
        return copies

    def write(self, group: int, virtual: Ids) -> None:
        """Have the host hold those tree pages among ``virtual`` that the device holds, as many as
        there is room for."""
        absent = self.memory.holds(group, virtual) & ~self.host.holds(group, virtual)
        virtual = virtual[absent]
        if not len(virtual):
            return
        room = self._most_pages(group)
        self.counters.not_written[group] += max(0, len(virtual) - room)
        virtual = virtual[:room]
        demand = [0] * self.memory.num_groups
        demand[group] = len(virtual) * self.memory.stripes[group]
        self.evictor.make_any_room(demand)
        # What fell with the pages that made room is not worth a copy any more.
        virtual = virtual[self.memory.holds(group, virtual)]
        if len(virtual):
            host = self.host.add(group, virtual, self.memory.times(group, virtual))
            device = self.memory.small_pages(group, virtual)
            self._copies.append(PageCopy(group, virtual, device, host, to_host=True))
            self.counters.written[group] += len(virtual)

    def _most_pages(self, group: int) -> int:
        """Pages of ``group`` that fit once everything in the host that is not pinned has gone."""
        large = self.host.large
        small = large.usable[group] + large.available * large.small_per_large[group]
        return small // self.memory.stripes[group]

    def spill(self, group: int, virtual: Ids) -> None:
        """Tree pages are about to leave the device: write those that are wanted."""
        virtual = virtual[self.memory.wanted[group][virtual] & self.memory.holds(group, virtual)]
        there = virtual[self.host.holds(group, virtual)]
        self.host.no_older(group, there, self.memory.times(group, there))
        self.write(group, virtual)

    def load(self, group: int, virtual: Ids, request: int, *, scarce: bool) -> None:
        """Have the device hold tree pages that only the host holds, pinned once. The room must
        have been made."""
        device = self.memory.load(group, virtual, request, scarce=scarce)
        host = self.host.small_pages(group, virtual)
        self._copies.append(PageCopy(group, virtual, device, host, to_host=False))
        self.counters.loaded[group] += len(virtual)

    def drop(self, group: int, virtual: Ids) -> None:
        """Tree pages are out of reach: free what the host holds of them."""
        self.evictor.counters.cascaded[group] += len(self.host.drop(group, virtual))


class DeviceEvictor(Evictor):
    """Makes room on the device. A page that the host holds as well is not lost."""

    def __init__(
        self,
        memory: Memory,
        tree: PrefixTree,
        permanent: Permanent,
        counters: Counters,
        policy: CachePolicy,
        tiers: Tiers,
    ) -> None:
        super().__init__(memory, tree, permanent, counters, policy)
        self._tiers = tiers

    def evict_pages(self, group: int, virtual: Ids) -> None:
        self._tiers.spill(group, virtual)
        super().evict_pages(group, virtual)

    def evict(self, pages: int) -> int:
        """Names come free only when the host holds nothing of a page either."""
        freed = super().evict(pages)
        return freed if freed >= pages else freed + self._tiers.evictor.evict(pages - freed)

    def _is_lost_for_ever(self, group: int, virtual: Ids) -> NDArray[np.bool_]:
        return super()._is_lost_for_ever(group, virtual) & ~self._tiers.host.holds(group, virtual)

    def _drop_unreachable(self, group: int, virtual: Ids) -> None:
        super()._drop_unreachable(group, virtual)
        self._tiers.drop(group, virtual)
