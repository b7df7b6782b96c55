"""Recurrent layers: one working state a request, and snapshots of it in the prefix tree.

A request updates its *working state* in place. A *snapshot* is a copy of it that belongs to a
position: it is the group's small page of the virtual page that ends there, and nobody writes to it
again. So a hit is possible exactly where a snapshot is held, and continuing from one always
starts with a copy::

    row of a request   [ p1 ][ p2 ][ p3 ][ p4 ][ p5 .
    rows of KV           k1    k2    k3    k4    k5
    snapshots                  s2          s4             after 2 and after 4 pages
    working state                                   w     after the last token; private

Where an answer will end nobody knows, so one snapshot moves along with it: every so many pages
it is overwritten, as the state after a later page, until the request ends.

A working state is the small page of a *slot*: a virtual page beyond those that name tokens, one
for every request that may run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jenga_sglang.core.books.corrupt import agree, distinct, none
from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.eviction import Evictor
from jenga_sglang.core.ids import Ids, ceil_div, round_up
from jenga_sglang.core.needs import Needs
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.ranges import Range, intersect
from jenga_sglang.core.running import Counters, Running, StateCopy


@dataclass(eq=False)
class Snapshots:
    """Hands out working states, and decides where snapshots of them are left."""

    memory: Memory
    needs: Needs
    evictor: Evictor
    policy: CachePolicy
    counters: Counters

    def __post_init__(self) -> None:
        self.page_size = self.needs.page_size
        first = self.memory.num_virtual + 1
        self._free = list(range(first + self.memory.num_slots - 1, first - 1, -1))

    @property
    def groups(self) -> list[int]:
        return self.memory.state_groups

    @property
    def state_tokens(self) -> int:
        """The tokens whose rows, where they are kept for ever, take as many bytes as a snapshot; 0
        where no rows are."""
        groups = self.memory.geometry.groups
        state_bytes = sum(groups[g].page_bytes for g in self.groups)
        lasting = [g for g in self.memory.row_groups if self.needs.keeps_everything(g)]
        row_bytes = sum(groups[g].spec.bytes_per_token for g in lasting)
        return ceil_div(state_bytes, row_bytes) if row_bytes else 0

    # -- working states -----------------------------------------------------------------------

    def needs_state_page(self, running: Running) -> bool:
        """Whether ``running`` will take a working state when it is first extended."""
        return bool(self.groups) and not running.state_page

    def start(self, running: Running, *, scarce: bool) -> None:
        """Give ``running`` a working state, to be copied from the snapshot that its hit ends with,
        or from the zero page. Its room must have been reserved."""
        if not self.needs_state_page(running):
            return
        self.open(running, scarce=scarce)
        num_pages = running.hit.path.num_pages
        for g in self.groups:
            table = self.memory.table[g]
            last = table[running.pages[num_pages - 1]] if num_pages else np.zeros_like(table[0])
            running.starts.append(StateCopy(g, last.copy(), self._small(g, running.state_page)))

    def open(self, running: Running, *, scarce: bool) -> None:
        """`start`, for somebody else to fill."""
        running.state_page = self._free.pop()
        slot = np.array([running.state_page], np.int64)
        self.memory.open_slot(slot)
        for g in self.groups:
            self.memory.back(g, slot, running.number, scarce=scarce)

    def stop(self, running: Running) -> None:
        """Free the working state of ``running``."""
        if not running.state_page:
            return
        slot = np.array([running.state_page], np.int64)
        for g in self.groups:
            self.memory.unpin(g, slot)
        self.memory.close_slot(slot)
        self._free.append(running.state_page)
        running.state_page = running.answer_page = 0
        running.starts.clear()
        running.saves.clear()

    # -- snapshots ----------------------------------------------------------------------------

    def leave(
        self,
        running: Running,
        start: int,
        stop: int,
        prompt: int,
        partings: Sequence[int],
        *,
        crowded: bool,
    ) -> None:
        """Have the step that takes ``running`` from ``start`` to ``stop`` tokens leave snapshots;
        see `Manager.save_states`."""
        if start < prompt:
            known = [*partings, prompt - 1]
            if self.policy.keep_branches and running.branch_ahead:
                known.append(running.hit.matched_pages * self.page_size)
            guesses = self._guesses(running, prompt, crowded)
            worth = self._worth_leaving(running, [*known, *guesses])
            evicting = due(start, stop, worth, self.page_size)
            for page in due(start, stop, known, self.page_size):
                self._save(running, page, evicts=page in evicting)
            for page in due(start, stop, guesses, self.page_size):
                if self._save(running, page, evicts=page in evicting):
                    running.guessed_pages.append(page)
        if interval := round_up(self.policy.answer_state_tokens, self.page_size):
            length = stop // interval * interval
            if length > max(start, prompt):
                self._follow_answer(running, length // self.page_size, crowded)

    def to_come(self, running: Running, prompt: int, partings: Sequence[int]) -> int:
        """Snapshots for which there should be room when ``running`` computes the rest of its
        ``prompt``: those worth leaving and, beside a history of more tokens than a snapshot is
        large, one for whoever comes next, for running requests grow into what was left free."""
        if not self.state_tokens or not self.policy.snapshot_room:
            return 0
        guesses = self._guesses(running, prompt, crowded=True)
        worth = self._worth_leaving(running, [*partings, prompt - 1, *guesses])
        return sum(n > running.length for n in worth) + (prompt >= self.state_tokens)

    def _worth_leaving(self, running: Running, lengths: Iterable[int]) -> list[int]:
        """Those of ``lengths``, the surest first, at which a hit spares enough beyond the hit of
        ``running`` and beyond a surer one."""
        least = max(1, self.state_tokens * self.policy.snapshot_gain_percent // 100)
        worth = [running.hit.path.num_pages * self.page_size]
        for length in lengths:
            if all(abs(length - other) >= least for other in worth):
                worth.append(length)
        return worth[1:]

    def _guesses(self, running: Running, prompt: int, crowded: bool) -> list[int]:
        """Where the next prompt may part from this one, as far as nobody knows: twice as far from
        its end each time, so that what has to be computed again is at most about as much as what
        is different. They take `CachePolicy.state_share_percent` of what the prompt adds. Who is
        to part from it soon is in the queue, if there is one: then one guess is enough."""
        added = prompt - running.hit.path.num_pages * self.page_size
        share = added * self.policy.state_share_percent
        most = share // (100 * self.state_tokens) if self.state_tokens else 0
        most = min(most, 1) if crowded else most
        distances = [max(1, self.policy.prompt_slack_tokens) << n for n in range(most)]
        return [prompt - distance for distance in distances if distance < added]

    def _save(self, running: Running, page: int, *, evicts: bool = True) -> bool:
        """Make the state after ``page`` pages a snapshot, if there is room for it, free or with
        ``evicts`` made. The request holds it for others until it is in the tree."""
        if not self._may_save(running, page):
            return False
        demand = self.memory.small_demand(0, states=1)
        books = self.memory.large
        if not (books.can_serve(demand) if evicts else books.shortfall(demand) <= 0):
            self.counters.skipped_snapshots += evicts
            return False
        self.evictor.make_any_room(demand)
        for g in self.groups:
            # Holes first: what was made room for one group must be left for the next.
            self.memory.back(g, running.pages[page - 1 : page], running.number, scarce=True)
        self._copy(running, page)
        self.counters.saved_snapshots += 1
        return True

    def _may_save(self, running: Running, page: int) -> bool:
        """Whether the state after ``page`` pages may become a snapshot of ``running``: its page is
        private, and has none yet."""
        shared = max(running.tree_pages, running.encoder_pages)
        if not running.state_page or not shared < page <= running.num_pages:
            return False
        return not any(self.memory.table[g][running.pages[page - 1], 0] for g in self.groups)

    def _follow_answer(self, running: Running, page: int, crowded: bool) -> None:
        if running.answer_page:
            if self._may_save(running, page):
                self._move_answer(running, page)
        elif not crowded and self._save(running, page):
            running.follow_answer(page)

    def _move_answer(self, running: Running, page: int) -> None:
        """The snapshot that moves along with the answer becomes the state after ``page`` pages."""
        before, pages = running.answer_page, running.pages
        for g in self.groups:
            self.memory.move(g, pages[before - 1 : before], pages[page - 1 : page])
            running.give_up_for_others(g, [Range(before - 1, before)])
        self._copy(running, page)
        running.follow_answer(page)

    def drop_answer(self, running: Running) -> bool:
        """Free the snapshot that moves along with the answer of ``running``, if there is one."""
        if not (page := running.answer_page):
            return False
        for g in self.groups:
            self.memory.unpin(g, running.pages[page - 1 : page])
            running.give_up_for_others(g, [Range(page - 1, page)])
        running.follow_answer(0)
        return True

    def publish(self, running: Running, num_pages: int) -> None:
        """The first ``num_pages`` pages of ``running`` are in the tree: snapshots among them need
        no pin any more, but are worth keeping."""
        if 0 < running.answer_page <= num_pages:
            running.follow_answer(0)
        for g in self.groups:
            new = Range(running.tree_pages, num_pages)
            fresh = intersect(running.held_for_others[g], [new])
            for r in fresh:
                self.memory.unpin(g, running.pages[r.start : r.stop])
                ends = [n for n in range(r.start + 1, r.stop + 1) if n not in running.guessed_pages]
                running.keep_hit(*[n * self.page_size for n in ends])
            running.give_up_for_others(g, fresh)

    def _copy(self, running: Running, page: int) -> None:
        """Have the working state copied to page ``page`` when it has got there."""
        for g in self.groups:
            source, target = running.state_page, running.pages.item(page - 1)
            copy = StateCopy(g, self._small(g, source), self._small(g, target))
            running.saves.append((page * self.page_size, copy))
            running.hold_for_others(g, [Range(page - 1, page)])

    def _small(self, group: int, virtual: int) -> Ids:
        return self.memory.table[group][virtual].copy()

    def check(self, running: Collection[Running]) -> None:
        """Raise `CorruptPool` unless each slot is free and empty, or one request's and backed."""
        first = self.memory.num_virtual + 1
        used = [r.state_page for r in running if r.state_page]
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


def due(start: int, stop: int, lengths: Iterable[int], page_size: int) -> list[int]:
    """Pages after which a step from ``start`` to ``stop`` tokens passes one of ``lengths``, rounded
    down to whole pages; ascending."""
    return sorted({n // page_size for n in lengths if start < n // page_size * page_size <= stop})
