"""What storage below the host has of a history, on its way into host memory.

One history's way up::

    wanted = fetching.wanted(known, num_pages)          pages that a hit lacks, by group
    fetch = fetching.begin(namespace, tokens, wanted)   room in the host; None: there is none
    fetching.turn_to(fetch, wanted)     a page has not come: those of a shorter hit instead
    fetching.end(fetch, num_pages)      what has come is in the tree, the rest is freed

Between `begin` and `end` the pages are nobody's but the fetch's: whoever reads writes to them, and
no hit sees them. What is there at the end decides, not what was there at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.tiers import EitherTier, TieredMemory
from jenga_sglang.core.books.tree import Path, PrefixTree, Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.needs import History, Needs
from jenga_sglang.core.tiers import Tiers

# Of the host, being read: nothing more is begun then, for the rest is what leaves the device's.
MOST_UNDER_WAY = 1 / 2

Exists = Callable[[int, int], bool]


@dataclass(frozen=True)
class Known:
    """Which pages of one history there are: those that ``held[g]`` says, one flag a page, and
    those of which ``exists(group, page)``. As `core.needs.Held`, with 1 for the first page."""

    held: Sequence[NDArray[np.bool_]]
    exists: Exists

    @property
    def encoder_groups(self) -> list[int]:
        return []

    def first_missing(self, group: int, pages: Ids) -> int | None:
        """Index of the first page that is not there, or None."""
        for index, page in enumerate(pages.tolist()):
            if not self._has(group, page - 1):
                return index
        return None

    def last_held(self, group: int, pages: Ids) -> int | None:
        """Index of the last page that is there, or None. Asks for none before it."""
        for index in range(len(pages) - 1, -1, -1):
            if self._has(group, int(pages[index]) - 1):
                return index
        return None

    def _has(self, group: int, page: int) -> bool:
        return bool(self.held[group][page]) or self.exists(group, page)

    def longest_hit(self, needs: Needs, num_pages: int) -> int:
        """The most of the first ``num_pages`` pages that every group can continue from."""
        return History(needs, self, 0).longest_hit(np.arange(1, num_pages + 1))[0]


@dataclass(eq=False)
class Fetch:
    """Pages of ``tokens`` that are being read: ``pages[g]`` counts from the first page of the
    history; ``names`` has the virtual page of each page of it, or 0."""

    namespace: Hashable
    tokens: Tokens
    pages: list[Ids]
    names: Ids

    def virtual(self, group: int) -> Ids:
        return self.names[self.pages[group]]


class Fetching:
    """Begins and ends fetches in the books of two tiers. Deterministic, as the manager is."""

    def __init__(self, memory: TieredMemory, tree: PrefixTree, needs: Needs, tiers: Tiers) -> None:
        self.memory = memory
        self.host = memory.host
        self.tree = tree
        self.needs = needs
        self.tiers = tiers
        self.under_way: list[Fetch] = []

    def held(self, path: Path, num_pages: int) -> list[NDArray[np.bool_]]:
        """Which of the first ``num_pages`` pages of a history that begins with ``path`` some tier
        holds, by group."""
        pages, either = self.tree.pages(path)[:num_pages], EitherTier(self.memory)
        held = [np.zeros(num_pages, np.bool_) for _ in self.needs.groups]
        for g, flags in enumerate(held):
            flags[: len(pages)] = either.holds(g, pages)
        return held

    def wanted(self, held: Sequence[NDArray[np.bool_]], num_pages: int) -> list[Ids]:
        """The pages that a hit of ``num_pages`` pages needs and that are not ``held``, by group."""
        needed = [self._needed(g, num_pages) for g in self.needs.groups]
        return [pages[~flags[pages]] for pages, flags in zip(needed, held, strict=True)]

    def _needed(self, group: int, num_pages: int) -> Ids:
        ranges = self.needs.of_text(group, num_pages * self.needs.page_size)
        parts = [np.arange(start, stop) for start, stop in ranges]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def begin(self, namespace: Hashable, tokens: Tokens, wanted: Sequence[Ids]) -> Fetch | None:
        """Take host pages for the ``wanted`` pages of ``tokens``, all or none; what is merely
        cached goes for them. None where they do not fit, or too much is under way."""
        stripes = self.memory.stripes
        demand = [len(pages) * s for pages, s in zip(wanted, stripes, strict=True)]
        distinct = np.unique(np.concatenate(wanted))
        large = self.host.large
        is_much = large.large_pages_in_use() >= MOST_UNDER_WAY * large.num_large
        if is_much or not large.can_serve(demand):
            return None
        if not self.tiers.evictor.make_names(len(distinct)):
            return None
        self.tiers.evictor.make_any_room(demand)
        names = np.zeros(len(tokens) // self.needs.page_size, np.int64)
        names[distinct] = self.memory.take_names(len(distinct))
        fetch = Fetch(namespace, tokens.copy(), list(wanted), names)
        for g in self.needs.groups:
            self.host.reserve(g, fetch.virtual(g))
        self.under_way.append(fetch)
        return fetch

    def turn_to(self, fetch: Fetch, wanted: Sequence[Ids]) -> list[Ids] | None:
        """Have ``fetch`` bring the ``wanted`` pages of its tokens and no others: what it brings
        already stays where it is. The pages that are to be read now, by group; None where they do
        not fit, and then it brings only what it would have kept."""
        kept = [np.intersect1d(old, new) for old, new in zip(fetch.pages, wanted, strict=True)]
        for g, pages in enumerate(kept):
            self.host.release(g, fetch.names[np.setdiff1d(fetch.pages[g], pages)])
        fetch.pages[:] = kept
        more = [np.setdiff1d(new, old) for old, new in zip(kept, wanted, strict=True)]
        demand = [len(new) * s for new, s in zip(more, self.memory.stripes, strict=True)]
        distinct = np.unique(np.concatenate(more))
        nameless = distinct[fetch.names[distinct] == 0]
        if not self.host.large.can_serve(demand):
            return None
        if not self.tiers.evictor.make_names(len(nameless)):
            return None
        self.tiers.evictor.make_any_room(demand)
        fetch.names[nameless] = self.memory.take_names(len(nameless))
        for g, pages in enumerate(more):
            self.host.reserve(g, fetch.names[pages])
        fetch.pages[:] = list(wanted)
        return more

    def small_pages(self, fetch: Fetch, group: int, pages: Ids) -> Ids:
        """Where ``pages`` of ``group`` are to be written; shape (pages, stripes)."""
        small: Ids = self.host.table[group][fetch.names[pages]]
        return small

    def end(self, fetch: Fetch, num_pages: int) -> int:
        """All that a hit of the first ``num_pages`` pages wanted of ``fetch`` has been written:
        put it into the tree, as far as a hit can use it now, and free the rest. The length of
        the hit that there is now, in pages."""
        self.under_way.remove(fetch)
        tokens = fetch.tokens[: num_pages * self.needs.page_size]
        path = self.tree.find(fetch.namespace, tokens)
        theirs = np.zeros(num_pages, np.int64)
        theirs[: path.num_pages] = self.tree.pages(path)
        num_pages = self._longest(fetch, path, num_pages)
        used = [self._used(fetch, g, theirs, num_pages) for g in self.needs.groups]
        for g, pages in enumerate(fetch.pages):
            self.host.release(g, fetch.names[np.setdiff1d(pages, used[g])])
        self._insert(fetch, path, theirs, used, num_pages)
        self.memory.give_names_back(fetch.names)
        path = self.tree.find(fetch.namespace, tokens)
        held = self.held(path, path.num_pages)
        return Known(held, lambda g, page: False).longest_hit(self.needs, path.num_pages)

    def _longest(self, fetch: Fetch, path: Path, num_pages: int) -> int:
        came = [set(pages[pages < num_pages].tolist()) for pages in fetch.pages]
        known = Known(self.held(path, num_pages), lambda g, page: page in came[g])
        return known.longest_hit(self.needs, num_pages)

    def _used(self, fetch: Fetch, group: int, theirs: Ids, num_pages: int) -> Ids:
        """Pages of ``group`` that have come, that the hit needs, and that the tiers lack."""
        pages = np.intersect1d(fetch.pages[group], self._needed(group, num_pages))
        return pages[~EitherTier(self.memory).holds(group, theirs[pages])]

    def _insert(
        self, fetch: Fetch, path: Path, theirs: Ids, used: Sequence[Ids], num_pages: int
    ) -> None:
        """Where the tree has a page its name stays; where it has none, the fetch's is taken."""
        fresh = np.zeros(num_pages, np.bool_)
        fresh[np.concatenate(used)] = True
        fresh &= theirs[:num_pages] == 0
        names = np.where(fresh, fetch.names[:num_pages], 0)
        known = min(path.num_pages, num_pages)
        self.tree.replace(path, 0, names[:known])
        if names[known:].any():
            tokens = fetch.tokens[: num_pages * self.needs.page_size]
            self.tree.trim(self.tree.extend(path, tokens, names[known:]).node)
        depths = np.flatnonzero(fresh)
        self.memory.move_to_tree(names[depths], depths)
        for g, pages in enumerate(used):
            old = pages[~fresh[pages]]
            self.host.move(g, fetch.names[old], theirs[old])
            self.tree.change(self.tree.nodes_of(theirs[old]))
            virtual = np.where(fresh[pages], fetch.names[pages], theirs[pages])
            self.host.keep(g, virtual, self.memory.now)
