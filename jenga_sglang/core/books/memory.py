"""Virtual pages, page tables and pins: the state of every page of tokens in every group.

A *virtual page* names ``page_size`` consecutive tokens of one history; it is what SGLang stores
(as virtual token ids) and never a place. The page table of a group maps it to one small page per
stripe, or to 0 where the group holds nothing. Virtual page 0 stands for "no page".

A virtual page is owned by exactly one side: *private* to the request that computed it, or *in the
tree*. Either way a running request pins what it still needs, per group; a pin count of zero makes
a tree page cached and sets a private page free.

A page of tokens is backed by a small page in every group of KV rows, a page that an encoder made
in every group of those that read such (`core.dependency.CrossAttention`). In a group of recurrent
states most have none: `core.recurrent` says which are backed there, and what slots are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.journal import Journal
from jenga_sglang.core.books.large_pages import LargePages
from jenga_sglang.core.books.lru import LruBuckets
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.dependency import reads_everything
from jenga_sglang.core.groups import Groups, Parts, Shared
from jenga_sglang.core.ids import Ids, ceil_div, last_true

# A logical time, with the weight of a page above it.
TIME_BITS = 42
MOST_WEIGHT = (1 << 20) - 1


class Memory(Groups):
    """The pool's books, in host arrays that are the authority for every rank and the device.

    ``table[g]`` has shape (virtual pages, stripes) and dtype int64; ``pins[g]`` counts pins per
    virtual page, and ``pins[-1]`` those on the virtual page itself.
    """

    def __init__(self, geometry: Geometry, num_virtual_pages: int, max_requests: int = 0) -> None:
        super().__init__(geometry)
        self.num_virtual = num_virtual_pages
        self.num_slots = max_requests if self.state_groups else 0
        self.journal = Journal()
        self.large = LargePages(geometry)
        self.lru = LruBuckets(self.large.num_large)
        rows = num_virtual_pages + 1 + self.num_slots
        self.table = [np.zeros((rows, s), np.int64) for s in self.stripes]
        self._first = [table[:, 0] for table in self.table]  # one index is faster than two
        # Narrow, for thousands of them are read at a time; no index is ever made of them.
        self.pins = np.zeros((self.num_groups + 1, rows), np.int32)
        self.in_tree = np.zeros(rows, np.bool_)
        # Position of a tree page in its history, in pages; orders eviction among equal times.
        self.depth = np.zeros(rows, np.int64)
        # Where evictions do not go by time alone: what of a tree page counts before it.
        self.weights = np.zeros(rows, np.int64)
        self.is_weighing = False
        # Pages of that history that an encoder made, all in front.
        self.encoder_pages = np.zeros(rows, np.int64)
        # The virtual page that a small page belongs to: the table read backwards.
        self.virtual_of = [
            np.zeros((self.large.num_large + 1) * k, np.int64) for k in self.large.small_per_large
        ]
        self._free = np.arange(num_virtual_pages, 0, -1, dtype=np.int64)
        self.num_free_virtual = num_virtual_pages
        self.num_tree = 0  # virtual pages in the tree
        self.num_tree_pinned = 0
        self.now = 0

    def add_group(self, geometry: Geometry) -> None:
        """``geometry`` is this one with one more group of rows: start its books, all empty."""
        super().add_group(geometry)
        group = self.num_groups - 1
        rows = self.pins.shape[1]
        self.table.append(np.zeros((rows, self.stripes[group]), np.int64))
        self._first.append(self.table[group][:, 0])
        self.pins = np.insert(self.pins, group, 0, axis=0)
        self.large.add_group(geometry.small_per_large(group))
        size = (self.large.num_large + 1) * self.large.small_per_large[group]
        self.virtual_of.append(np.zeros(size, np.int64))

    def tick(self) -> int:
        """Advance logical time: the only clock there is, so that every rank decides alike."""
        self.now += 1
        return self.now

    # -- requests: take, pin, unpin -----------------------------------------------------------

    def take(
        self,
        parts: Parts,
        request: int,
        *,
        states: int = 0,
        scarce: bool = False,
        shared: Shared = (),
    ) -> Ids:
        """Hand the new private virtual pages of ``parts``, in order, to ``request``; those that
        are ``shared`` have one small page for all stripes (`core.passing`).

        The room must have been made before (`Manager.reserve`), for ``states`` new states as
        well; raises ``MemoryError`` and changes nothing if not.
        """
        pages = sum([count for count, _ in parts])
        virtual = self._take_virtual(pages, self.demand_of_step(parts, shared, states))
        start = 0
        for count, groups in parts:
            for g in groups if count else ():
                self.back(g, virtual[start : start + count], request, scarce=scarce)
            start += count
        for g, r in shared:
            self.back(g, virtual[r.start : r.stop], request, scarce=scarce, stripes=1)
        self.pins[-1][virtual] = 1
        return virtual

    def take_each(
        self, groups: Sequence[int], requests: Sequence[int], *, scarce: bool = False
    ) -> Ids:
        """`take` one page in ``groups`` for each of ``requests``, in order."""
        counts = [(g, self.stripes[g]) for g in groups]
        demand = [0] * self.num_groups
        for g, stripes in counts:
            demand[g] = stripes * len(requests)
        virtual = self._take_virtual(len(requests), demand)
        taken = self.large.take_each(counts, requests, scarce=scarce)
        for (g, stripes), (small, fresh) in zip(counts, taken, strict=True):
            pages = np.array(small, np.int64).reshape(-1, stripes)
            self._back(g, virtual, pages, np.array(fresh, np.int64))
        self.pins[-1][virtual] = 1
        return virtual

    def _take_virtual(self, pages: int, demand: Sequence[int]) -> Ids:
        """``pages`` virtual pages, if there is room for ``demand`` small pages per group."""
        if self.large.shortfall(demand) > 0 or pages > self.num_free_virtual:
            raise MemoryError(f"{pages} virtual pages were never reserved")
        self.num_free_virtual -= pages
        return self._free[self.num_free_virtual : self.num_free_virtual + pages][::-1].copy()

    def back(
        self, group: int, virtual: Ids, request: int, *, scarce: bool = False, stripes: int = 0
    ) -> None:
        """Give private pages or slots small pages of ``group``, pinned once; with ``stripes`` = 1
        all share one. The room must have been made before."""
        stripes = stripes or self.stripes[group]
        small, fresh = self.large.take(group, len(virtual) * stripes, request, scarce=scarce)
        self._back(group, virtual, small.reshape(-1, stripes), fresh)

    def _back(self, group: int, virtual: Ids, small: Ids, fresh: Ids) -> None:
        """`back` by ``small`` pages, (pages, stripes or 1), some of ``fresh`` large pages."""
        # Until something needs it again a page is transient: first to go. A large page with
        # other tenants keeps their time.
        if len(fresh):
            self.lru.start(fresh)
        self.table[group][virtual] = small
        self.virtual_of[group][small] = virtual[:, None]
        self.pins[group][virtual] = 1
        self.journal.note_changed(virtual)

    def open_slot(self, slot: Ids) -> None:
        """A request's working states live in ``slot`` from now on."""
        self.pins[-1][slot] = 1

    def close_slot(self, slot: Ids) -> None:
        self.pins[-1][slot] = 0

    def pin(self, group: int, virtual: Ids) -> None:
        """Pin tree pages that ``group`` holds: cached ones become used."""
        pins = self.pins[group]
        before = pins[virtual]
        pins[virtual] = before + 1
        if len(idle := virtual[before == 0]):
            self.large.use(group, self.small_pages(group, idle))

    def unpin(self, group: int, virtual: Ids) -> None:
        """Drop one pin: a tree page that nobody pins any more becomes cached, a private one is
        freed in this group."""
        pins = self.pins[group]
        left = pins[virtual] - 1
        pins[virtual] = left
        idle = virtual[left == 0]
        if not len(idle):
            return
        in_tree = self.in_tree[idle]
        if len(cached := idle[in_tree]):
            self.lru.add(self.large.cache(group, self.small_pages(group, cached)))
        if len(private := idle[~in_tree]):
            self.lru.add(self.large.free_used(group, self._clear(group, private)))

    def free_shared(self, group: int, virtual: Ids) -> None:
        """Free private pages that have one small page of ``group`` for all stripes."""
        self.pins[group][virtual] = 0
        small = self._clear(group, virtual, self._first[group][virtual])
        self.lru.add(self.large.free_used(group, small))

    def pin_virtual(self, virtual: Ids) -> None:
        """Pin the virtual pages themselves, all in the tree; 0 is passed over."""
        virtual = virtual[virtual != 0]
        pins = self.pins[-1]
        before = pins[virtual]
        self.num_tree_pinned += len(before) - int(np.count_nonzero(before))
        pins[virtual] = before + 1

    def unpin_virtual(self, virtual: Ids) -> Ids:
        """Drop one pin of virtual pages; private ones are given back, 0 is passed over. Returns the
        tree's that nobody pins any more."""
        virtual = virtual[virtual != 0]
        left = self.pins[-1][virtual] - 1
        self.pins[-1][virtual] = left
        idle = virtual[left == 0]
        in_tree = self.in_tree[idle]
        cached = idle[in_tree]
        self.num_tree_pinned -= len(cached)
        self._give_back(idle[~in_tree])
        return cached

    def touch(self, group: int, virtual: Ids) -> None:
        """A hit needed these pages of ``group`` now. A large page is worth its worthiest page."""
        large = self.large_pages(group, virtual)
        if self.is_weighing:
            times = self.now + (self.weights[virtual] << TIME_BITS)
            self.lru.no_older(large, np.repeat(times, self.stripes[group]))
        else:
            self.lru.touch(large, self.now)

    def large_pages(self, group: int, virtual: Ids) -> Ids:
        """The large pages in which these pages of ``group`` lie, one for each stripe."""
        return self.large.large_of(group, self.small_pages(group, virtual))

    # -- the tree: own, merge, evict ----------------------------------------------------------

    def move_to_tree(self, virtual: Ids, depth: Ids, encoder_pages: int = 0) -> None:
        """Private pages, pinned by one request, become tree pages at these depths of a history that
        begins with ``encoder_pages`` pages of an encoder's."""
        self.in_tree[virtual] = True
        self.depth[virtual] = depth
        self.encoder_pages[virtual] = encoder_pages
        self.num_tree += len(virtual)
        self.num_tree_pinned += len(virtual)
        for g in range(self.num_groups):
            self._note_tree(g, True, virtual)

    def _note_tree(self, group: int, held: bool, virtual: Ids) -> None:
        """The tree pages among ``virtual`` that ``group`` holds are new to it, or leave it."""
        if self.journal.records_tree:
            of_tree = virtual[self.in_tree[virtual] & self.holds(group, virtual)]
            self.journal.note_tree(group, held, of_tree)

    def merge(self, private: Ids, tree: Ids) -> None:
        """Replace private pages by tree pages of the same tokens, position by position.

        Where the tree holds the group's page, the private copy is freed; where it does not, the
        private small pages move over. The request's pins move along.
        """
        for g in range(self.num_groups):
            held = self.pins[g][private] > 0
            mine, theirs = private[held], tree[held]
            absent = ~self.holds(g, theirs)
            self.move(g, mine[absent], theirs[absent])
            self.pin(g, theirs[~absent])
            self.unpin(g, mine[~absent])
        self.pin_virtual(tree)
        self.unpin_virtual(private)

    def move(self, group: int, private: Ids, others: Ids) -> None:
        """What ``group`` holds of ``private`` pages becomes that of ``others``, pins and all."""
        small = self.table[group][private]
        self.table[group][others] = small
        self.table[group][private] = 0
        self.virtual_of[group][small.ravel()] = np.repeat(others, self.stripes[group])
        self.pins[group][others] = self.pins[group][private]
        self.pins[group][private] = 0
        self.journal.note_changed(others, private)
        self._note_tree(group, True, others)

    def drop(self, group: int, virtual: Ids) -> Ids:
        """Free cached pages of ``group``; passes over pages that the group does not hold, and
        returns the others."""
        virtual = virtual[self.holds(group, virtual)]
        if len(virtual):
            self.large.free_cached(group, self._clear(group, virtual))
        return virtual

    def hollow(self, virtual: Ids) -> Ids:
        """Tree pages among ``virtual`` that no group holds anything of and no request pins."""
        for first in self._first:
            virtual = virtual[first[virtual] == 0]
            if not len(virtual):
                return virtual
        return virtual[self.in_tree[virtual] & (self.pins[-1][virtual] == 0)]

    def forget(self, virtual: Ids) -> None:
        """Take hollow pages out of the tree and give their virtual ids back."""
        self.in_tree[virtual] = False
        if self.is_weighing:
            self.weights[virtual] = 0
        self.num_tree -= len(virtual)
        self._give_back(virtual)

    def tenants(self, group: int, large: Ids) -> Ids:
        """Virtual pages with a small page of ``group`` in ``large`` pages; shape (large, k)."""
        return self.virtual_of[group][self.large.small_of(group, large)]

    def first_missing(self, group: int, virtual: Ids) -> int | None:
        """Index of the first page that ``group`` does not hold, or None."""
        if not len(virtual):
            return None
        held = self._first[group][virtual]
        index = int(held.argmin())  # the first 0, if there is one
        return None if held[index] else index

    def last_held(self, group: int, virtual: Ids) -> int | None:
        """Index of the last page that ``group`` holds, or None."""
        return last_true(self.holds(group, virtual))

    def holds(self, group: int, virtual: Ids) -> NDArray[np.bool_]:
        """Which pages ``group`` holds."""
        held: NDArray[np.bool_] = self._first[group][virtual] != 0
        return held

    # -- helpers ------------------------------------------------------------------------------

    def small_pages(self, group: int, virtual: Ids) -> Ids:
        """The small pages of these pages of ``group``, one for each stripe."""
        if self.stripes[group] == 1:
            return self._first[group][virtual]
        return self.table[group].take(virtual, axis=0).ravel()

    def _clear(self, group: int, virtual: Ids, small: Ids | None = None) -> Ids:
        small = self.small_pages(group, virtual) if small is None else small
        self._note_tree(group, False, virtual)
        self.table[group][virtual] = 0
        self.virtual_of[group][small] = 0
        self.journal.note_changed(virtual)
        self.journal.note_freed(group, small)
        return small

    @property
    def free_virtual(self) -> Ids:
        """Virtual pages that name nothing, the next one last."""
        return self._free[: self.num_free_virtual]

    def _give_back(self, virtual: Ids) -> None:
        end = self.num_free_virtual + len(virtual)
        self._free[self.num_free_virtual : end] = virtual[::-1]
        self.num_free_virtual = end


def default_virtual_pages(geometry: Geometry, max_requests: int, max_length: int) -> int:
    """Virtual pages that can never run out before memory does.

    Where a group depends on everything, each live virtual page of text holds one of its pages, and
    one of an encoder's holds a page of a group that reads those. Otherwise a running request keeps
    ids of pages that it has let go of in every group.
    """
    full: list[int] = []
    encoder = 0
    for g, group in enumerate(geometry.groups):
        if group.spec.dependency.reads_encoder:
            encoder = max(encoder, geometry.max_pages(g))
        elif reads_everything(group.spec.dependency, max_length):
            full.append(geometry.max_pages(g))
    if full:
        return max(min(full), encoder)
    pages = sum(geometry.max_pages(g) for g in range(len(geometry.groups)))
    return pages + max_requests * ceil_div(max_length, geometry.page_size)
