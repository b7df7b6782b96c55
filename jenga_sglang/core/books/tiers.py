"""The books of a second tier: host memory of the same cut, below the pool.

A virtual page stays a name, never a place: the host has a table of its own beside the device's::

    device.table[g][virtual, stripe]    small page in the pool, or 0
    host.table[g][virtual, stripe]      small page in host memory, or 0

A page may be in both, in one, or in neither. Only pages of the tree are in the host, and those that
are being read from storage, whose names are pinned by nobody who runs. None is pinned there but
while it is copied or read. What lies in large pages of the host is counted just as
in the pool; whose virtual pages are which is the device's to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.ids import Ids, last_true


class HostMemory(Memory):
    """Where the pages of the tree lie in host memory. Shares what is true of a virtual page
    wherever it lies with the ``device``'s books."""

    def __init__(self, device: Memory, geometry: Geometry) -> None:
        super().__init__(geometry, device.num_virtual, device.num_slots)
        self.in_tree = device.in_tree
        self.depth = device.depth
        self.encoder_pages = device.encoder_pages

    def no_older(self, group: int, virtual: Ids, times: Ids) -> None:
        """Pages that ``group`` holds here were last used at ``times``, one for each stripe, or
        later."""
        self.lru.no_older(self.large_pages(group, virtual), times)

    def add(self, group: int, virtual: Ids, times: Ids) -> Ids:
        """Back tree pages, last used at ``times``, one for each stripe; returns their small pages.
        The room must have been made."""
        self.back(group, virtual, 0)
        self.no_older(group, virtual, times)
        self.unpin(group, virtual)
        self._note_tree(group, True, virtual)
        return self.small_pages(group, virtual)

    def note_held(self, group: int, virtual: Ids) -> None:
        """``virtual`` pages have come into the tree; those that ``group`` holds here are new."""
        self._note_tree(group, True, virtual)

    def reserve(self, group: int, virtual: Ids) -> None:
        """Back private pages that are to be read. The room must have been made."""
        self.back(group, virtual, 0)
        self.pins[-1][virtual] = 1

    def release(self, group: int, virtual: Ids) -> None:
        """Free pages that were reserved."""
        self.unpin(group, virtual)

    def keep(self, group: int, virtual: Ids, now: int) -> None:
        """Pages that were reserved are in the tree, last used ``now``."""
        self.no_older(group, virtual, np.full(len(virtual) * self.stripes[group], now))
        self.unpin(group, virtual)


class TieredMemory(Memory):
    """The pool's books, over those of a `HostMemory` of ``host_geometry``.

    ``wanted[g]`` says which virtual pages some kept hit has needed in group g since they were
    there: what is worth a place in the host. All others are only needed by hits in between.
    """

    def __init__(
        self, geometry: Geometry, host_geometry: Geometry, num_virtual: int, max_requests: int
    ) -> None:
        super().__init__(geometry, num_virtual, max_requests)
        self.wanted = np.zeros((self.num_groups, self.pins.shape[1]), np.bool_)
        self.host = HostMemory(self, host_geometry)

    def touch(self, group: int, virtual: Ids) -> None:
        super().touch(group, virtual)
        self.wanted[group][virtual] = True

    def move_to_tree(self, virtual: Ids, depth: Ids, encoder_pages: int = 0) -> None:
        super().move_to_tree(virtual, depth, encoder_pages)
        for g in range(self.num_groups):
            self.host.note_held(g, virtual)

    def hollow(self, virtual: Ids) -> Ids:
        for g in range(self.num_groups):
            virtual = virtual[~self.host.holds(g, virtual)]
        return super().hollow(virtual)

    def forget(self, virtual: Ids) -> None:
        self.wanted[:, virtual] = False
        super().forget(virtual)

    def take_names(self, count: int) -> Ids:
        """Virtual pages, pinned once, of which no group holds anything yet."""
        virtual = self._take_virtual(count, [0] * self.num_groups)
        self.pins[-1][virtual] = 1
        return virtual

    def give_names_back(self, virtual: Ids) -> None:
        """What `take_names` has pinned is in the tree now, or free again; 0 is passed over."""
        self.host.pins[-1][virtual] = 0
        self.unpin_virtual(virtual)

    def times(self, group: int, virtual: Ids) -> Ids:
        """When the large pages of these pages of ``group`` were last used, one for each stripe."""
        times: Ids = self.lru.time[self.large_pages(group, virtual)]
        return times

    def load(self, group: int, virtual: Ids, request: int, *, scarce: bool) -> Ids:
        """Back tree pages that ``group`` does not hold, pinned once; returns their small pages.
        The room must have been made."""
        self.back(group, virtual, request, scarce=scarce)
        self.wanted[group][virtual] = True
        self._note_tree(group, True, virtual)
        return self.small_pages(group, virtual)


@dataclass(frozen=True)
class EitherTier:
    """Which pages are on the device or in the host."""

    memory: TieredMemory

    @property
    def encoder_groups(self) -> list[int]:
        return self.memory.encoder_groups

    def holds(self, group: int, virtual: Ids) -> NDArray[np.bool_]:
        """Which pages ``group`` holds somewhere."""
        memory = self.memory
        held: NDArray[np.bool_] = memory.holds(group, virtual) | memory.host.holds(group, virtual)
        return held

    def first_missing(self, group: int, virtual: Ids) -> int | None:
        """Index of the first page that ``group`` holds nowhere, or None."""
        held = self.holds(group, virtual)
        return None if held.all() else int(held.argmin())

    def last_held(self, group: int, virtual: Ids) -> int | None:
        """Index of the last page that ``group`` holds somewhere, or None."""
        return last_true(self.holds(group, virtual))
