"""Recurrent layers: one working state a request, and checkpoints of it in the prefix tree.

A request updates its *working state* in place. A *checkpoint* is a copy of it that belongs to a
position: it is the group's small page of the virtual page that ends there, and nobody writes to it
again. So a hit is possible exactly where a checkpoint is held, and continuing from one always
starts with a copy::

    row of a request   [ p1 ][ p2 ][ p3 ][ p4 ][ p5 .
    rows of KV           k1    k2    k3    k4    k5
    checkpoints                c2          c4             after 2 and after 4 pages
    working state                                   w     after the last token; private

Where an answer will end nobody knows, so one checkpoint moves along with it: every so many pages
it is overwritten, as the state after a later page, until the request ends.

A working state is the small page of a *slot*: a virtual page beyond those that name tokens, one
for every request that may run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from jenga_sglang.core.corrupt import agree, distinct, none
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.memory import Memory
from jenga_sglang.core.pin import Pin, StateCopy
from jenga_sglang.core.ranges import Range, subtract, union


@dataclass(eq=False)
class States:
    """Hands out working states and room for checkpoints of every group of recurrent states."""

    memory: Memory

    def __post_init__(self) -> None:
        first = self.memory.num_virtual + 1
        self._free = list(range(first + self.memory.num_slots - 1, first - 1, -1))

    @property
    def groups(self) -> list[int]:
        return self.memory.state_groups

    def needs_slot(self, pin: Pin) -> bool:
        """Whether ``pin`` will take a working state when it is first extended."""
        return bool(self.groups) and not pin.slot

    def start(self, pin: Pin, *, scarce: bool) -> None:
        """Give ``pin`` a working state, to be copied from the checkpoint that its hit ends with,
        or from the zero page. Its room must have been reserved."""
        if not self.needs_slot(pin):
            return
        pin.slot = self._free.pop()
        slot = np.array([pin.slot], np.int64)
        self.memory.open_slot(slot)
        length = pin.hit.path.num_pages
        for g in self.groups:
            self.memory.back(g, slot, pin.number, scarce=scarce)
            table = self.memory.table[g]
            checkpoint = table[pin.pages[length - 1]] if length else np.zeros_like(table[0])
            pin.starts.append(StateCopy(g, checkpoint.copy(), table[pin.slot].copy()))

    def stop(self, pin: Pin) -> None:
        """Free the working state of ``pin``."""
        if not pin.slot:
            return
        slot = np.array([pin.slot], np.int64)
        for g in self.groups:
            self.memory.unpin(g, slot)
        self.memory.close_slot(slot)
        self._free.append(pin.slot)
        pin.slot = pin.answer_page = 0
        pin.starts.clear()
        pin.saves.clear()

    def save(self, pin: Pin, page: int, page_size: int) -> None:
        """Make the state after ``page`` pages of ``pin`` a checkpoint; there is room for it. The
        request holds it for others until it is in the tree."""
        virtual = pin.pages[page - 1 : page]
        for g in self.groups:
            # Holes first: what was made room for one group must be left for the next.
            self.memory.back(g, virtual, pin.number, scarce=True)
        self._copy(pin, page, page_size)

    def move_answer(self, pin: Pin, page: int, page_size: int) -> None:
        """`save`, in place of the checkpoint that has moved along with the answer so far."""
        before = Range(pin.answer_page - 1, pin.answer_page)
        for g in self.groups:
            self.memory.move(g, pin.pages[before.start : before.stop], pin.pages[page - 1 : page])
            pin.held_for_others[g] = subtract(pin.held_for_others[g], [before])
        self._copy(pin, page, page_size)
        pin.answer_page = page

    def drop_answer(self, pin: Pin) -> None:
        """Free the checkpoint that moves along with the answer of ``pin``."""
        page = Range(pin.answer_page - 1, pin.answer_page)
        for g in self.groups:
            self.memory.unpin(g, pin.pages[page.start : page.stop])
            pin.held_for_others[g] = subtract(pin.held_for_others[g], [page])
        pin.answer_page = 0

    def _copy(self, pin: Pin, page: int, page_size: int) -> None:
        """Have the working state copied to page ``page`` when it has got there."""
        for g in self.groups:
            target = self._small(g, pin.pages[page - 1 : page])
            copy = StateCopy(g, self.memory.table[g][pin.slot].copy(), target)
            pin.saves.append((page * page_size, copy))
            pin.held_for_others[g] = union([*pin.held_for_others[g], Range(page - 1, page)])

    def can_save(self, pin: Pin, page: int) -> bool:
        """Whether the state after ``page`` pages may become a checkpoint of ``pin``: its page is
        private, and has none yet."""
        if not pin.slot or not max(pin.tree_pages, pin.encoder_pages) < page <= pin.num_pages:
            return False
        return not any(self.memory.table[g][pin.pages[page - 1], 0] for g in self.groups)

    def _small(self, group: int, virtual: Ids) -> Ids:
        return self.memory.table[group][virtual[0]].copy()

    def check(self, pins: Collection[Pin]) -> None:
        """Raise `CorruptPool` unless each slot is free and empty, or one request's and backed."""
        first = self.memory.num_virtual + 1
        used = [pin.slot for pin in pins if pin.slot]
        distinct(
            "slots of states",
            np.array([*self._free, *used], np.int64),
            first + self.memory.num_slots,
        )
        agree("slots of states free or used", len(self._free) + len(used), self.memory.num_slots)
        none("slots that name tokens", [slot for slot in (*self._free, *used) if slot < first])
        for g in self.groups:
            backed = self.memory.table[g][first:, 0] != 0
            agree(
                f"group {g}: slots with a state",
                (np.flatnonzero(backed) + first).tolist(),
                sorted(used),
            )


def due(start: int, stop: int, interval: int, others: Iterable[int], page_size: int) -> list[int]:
    """Pages after which a step from ``start`` to ``stop`` tokens passes a checkpoint: every
    ``interval`` tokens, and at the ``others``, rounded down to whole pages; ascending."""
    regular = range(start // interval * interval, stop + 1, interval)
    lengths = {n // page_size for n in (*regular, *others)}
    return sorted(n for n in lengths if start < n * page_size <= stop)
