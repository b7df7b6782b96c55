"""Pages that pass: one step writes and reads them, and no later one does.

A chunk of a prompt takes pages for all its tokens in every group; where a group forgets, nearly all
of them go when the step has ended. Layers run one after the other, and each has read what it wrote
of the step's tokens before the next one writes. So the page tables of all stripes of such a group
may name one small page for a page of tokens that passes::

    a chunk, window of two pages   | p0 | p1 | p2 | p3 | p4 | p5 |
    stripe 0                         s4   s5   s6   s7   s8   s10
    stripe 1                         s4   s5   s6   s7   s9   s11
                                     pass                stay

They are never in the tree, and free as soon as the step has been launched: whatever takes them then
is written by a later step of the same stream. Hits that would need them are given up. So pages pass
only where they would have to evict what somebody has used, and not where hits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.groups import Parts, Shared
from jenga_sglang.core.ids import Ids, ceil_div
from jenga_sglang.core.needs import Needs
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.ranges import Range, intersect, subtract, union
from jenga_sglang.core.running import Growth, Running

# A request, and the new pages that it asks for.
Demand = tuple[Running, int]
# Lengths of hits that should stay possible in what a step computes of a request; None where all of
# its pages stay.
Wanted = Sequence[int] | None


@dataclass
class Passing:
    """Decides which pages of a step pass. ``under_way`` are the requests that have such pages."""

    memory: Memory
    needs: Needs
    policy: CachePolicy
    under_way: dict[int, Running] = field(default_factory=dict)
    _forgetful: Sequence[int] = ()
    _groups: Sequence[int] = ()

    @property
    def groups(self) -> Sequence[int]:
        """Groups of which pages may pass: of rows, in several stripes, which forget."""
        forgetful = self.needs.forgetful
        if self._forgetful is not forgetful:  # a list of its own for the groups of now
            self._forgetful = forgetful
            self._groups = [g for g in forgetful if self._may_pass(g)]
        return self._groups

    def _may_pass(self, group: int) -> bool:
        memory, is_on = self.memory, self.policy.passing_pages
        is_read_late = memory.geometry.groups[group].spec.is_read_late
        several_rows = memory.stripes[group] > 1 and group in memory.row_groups
        return is_on and several_rows and not is_read_late

    def most_room(self, group: int, pages: int) -> int:
        """`room` in a history of any length."""
        return self.room(group, pages, self.most_that_stays(group, self.needs.max_length))

    def room(self, group: int, pages: int, stays: int) -> int:
        """Of ``pages`` new pages, so many are as much room as they take at most in one of `groups`,
        where memory is short and at most so many of them stay."""
        if pages <= stays:
            return pages
        return stays + ceil_div(pages - stays, self.memory.stripes[group])

    def most_that_stays(self, group: int, length: int) -> int:
        """Pages of a history of at most ``length`` tokens that a step in ``group`` leaves."""
        dependency = self.needs.dependencies[group]
        ranges = max(1, len(dependency.needed(length)))
        return ceil_div(dependency.peak_tokens(length), self.needs.page_size) + 1 + ranges

    # -- a step -------------------------------------------------------------------------------

    def may_pass(self, running: Running, pages: int) -> bool:
        """Whether some of the next ``pages`` pages of ``running`` could pass."""
        return pages > 1 and bool(self._growth(running, pages, ()).shared)

    def plan(
        self, demands: Sequence[Demand], plain: Sequence[int], wanted: Sequence[Wanted]
    ) -> list[list[Growth]]:
        """How the next pages of each request are backed where some pass: so that what is ``wanted``
        stays, and with the least room. Nothing where none is to pass. ``plain`` are the small pages
        per group that all take without."""
        least = self._growths(demands, [None if w is None else () for w in wanted])
        if not any(growth.shared for growth in least) or self._evicts_nothing_used(plain):
            return []
        return [self._growths(demands, wanted), least]

    def _growths(self, demands: Sequence[Demand], wanted: Sequence[Wanted]) -> list[Growth]:
        return [self._growth(*d, lengths) for d, lengths in zip(demands, wanted, strict=True)]

    def _evicts_nothing_used(self, demand: Sequence[int]) -> bool:
        """Whether ``demand`` fits into what is free and what nothing has needed since it was
        computed."""
        large, lru = self.memory.large, self.memory.lru
        if (short := large.shortfall(demand)) <= 0:
            return True
        if short > sum(large.num_reclaimable):
            return False
        return short <= int(np.count_nonzero(lru.time[large.reclaimable()] == 0))

    def _growth(self, running: Running, pages: int, wanted: Wanted) -> Growth:
        """The next ``pages`` pages of ``running``: what passes of them is all but what a history
        that ends in the last of them needs, and hits of the ``wanted`` lengths."""
        if wanted is None:
            return Growth(running, running.num_pages, pages, running.parts(pages))
        first, stop = running.num_pages, running.num_pages + pages
        new, encoder = Range(first, stop), running.encoder_pages
        passing: dict[int, list[Range]] = {}
        for g in self.groups if first >= encoder and pages > 1 else ():
            if g in running.groups:
                stays = [Range(stop - 1, stop), *self._needed(running, g, stop - 1)]
                for length in wanted:
                    stays += self._needed(running, g, length // self.needs.page_size)
                if ranges := subtract([new], union(stays)):
                    passing[g] = ranges
        if not passing:
            return Growth(running, first, pages, running.parts(pages))
        shared = tuple(
            (g, Range(start - first, end - first))
            for g, ranges in passing.items()
            for start, end in ranges
        )
        return Growth(running, first, pages, _parts(running, new, passing), shared)

    def _needed(self, running: Running, group: int, pages: int) -> tuple[Range, ...]:
        return running.history.pages(group, pages * self.needs.page_size)

    def begin(self, running: Running, pages: Ids, shared: Shared) -> None:
        """``running`` has been given ``pages``, of which those ``shared`` pass."""
        running.passing = [(g, pages[r.start : r.stop]) for g, r in shared]
        self.under_way[running.number] = running

    def end(self, running: Running) -> None:
        """The step has been launched in which pages of ``running`` pass: they are free."""
        if not running.passing:
            return
        del self.under_way[running.number]
        for group, pages in running.passing:
            self.memory.free_shared(group, pages)
        running.passing = []

    def end_all(self) -> None:
        """`end`, of every request."""
        for running in list(self.under_way.values()):
            self.end(running)


def _parts(running: Running, new: Range, passing: dict[int, list[Range]]) -> Parts:
    """``new`` pages of ``running``, and the groups in which each of them is a page of its own."""
    cuts = sorted({*new, *(edge for ranges in passing.values() for r in ranges for edge in r)})
    return tuple(
        (
            stop - start,
            tuple(
                g for g in running.groups if not intersect(passing.get(g, ()), [Range(start, stop)])
            ),
        )
        for start, stop in pairwise(cuts)
    )
