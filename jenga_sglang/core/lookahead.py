"""What waiting requests will hit: the part of the future that a prefix cache knows.

A waiting request says which prefix will be asked for, and its place in the queue says when. So
evict what nobody waits for, then what is waited for longest (Belady's order), in every tier, and
weigh: running one more request is worth less than the prefixes that it would push out where those
are long.

The weighing, per page of memory and step of the server. One more request beside R running ones
carries ``1 / R`` of every step's fixed cost, which is ``step_cost_tokens`` tokens of prompt in the
same time. A cached prefix saves its tokens once, when the p-th request from the head is admitted;
requests leave, and others come in, every ``mean_decode_steps / R`` steps. A request takes as many
pages as those that run do, U / R of the U which they pin: what is its own, and its share of what it
has in common with others. So a prefix of T tokens in B pages goes for it when::

    T / (p · mean_decode_steps / R · B)  <=  step_cost_tokens / (R · U / R)

Over host memory T is no more than what is computed while the prefix is written and loaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.admission import in_large_pages
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.books.tree import Node, Path, PrefixTree, Tokens
from jenga_sglang.core.guard import Guard
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.ranges import Range
from jenga_sglang.core.recency import Place

MAX_REQUESTS = 128  # looked at, from the head of the queue

# The history of the request at an index of the queue: its namespace and its tokens.
Read = Callable[[int], tuple[Hashable, Tokens]]


@dataclass(frozen=True)
class Wanted:
    """A cached prefix that the ``position``-th request of the queue is the first to hit.

    ``saved_tokens`` are those that no request before it wants already; ``large_pages`` what they
    take of the memory that could be evicted, in large pages. ``hit_tokens`` are all that it hits.
    """

    position: int
    hit_tokens: int
    saved_tokens: int
    large_pages: float


@dataclass(slots=True)
class _Route:
    """The longest match of a history: it stays that for as long as its node is as it was and has
    no child that begins with ``next_key``, the page with which the history goes on. It was so at
    ``version`` of the tree."""

    path: Path
    start: int
    stop: int
    next_key: bytes
    version: int

    @classmethod
    def find(
        cls, tree: PrefixTree, namespace: Hashable, tokens: Tokens, known: Path | None
    ) -> _Route:
        path = tree.find(namespace, tokens, known)
        node = path.node
        next_key = tree.key(tokens, path.num_pages)
        return cls(path, node.start, node.stop, next_key, tree.version)

    def is_current(self, tree: PrefixTree) -> bool:
        node = self.path.node
        return (
            self.next_key not in node.children
            and self.start == node.start
            and self.stop == node.stop
            and tree.is_alive(node)
        )


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What a request on one path will hit: these ``pages``, of which each group needs these ranges,
    in these ``large`` pages; with what is below the pool it hits what lies at these ``places``. It
    stays that for as long as the path's pages are what they were at ``version``."""

    pages: Ids
    needed: list[list[Range]]
    large: list[Ids]
    places: list[Place]
    version: int


class Lookahead:
    """Reads the waiting queue for one `Manager`. ``wanted`` is nearest first."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.guard = Guard(manager.policy, manager.counters, manager.prices)
        self.clear()

    def clear(self) -> None:
        """Forget the queue."""
        self.wanted: list[Wanted] = []
        self._waiting: Sequence[str] = ()
        self._decisive: Wanted | None = None
        self._routes: dict[str, _Route] = {}
        self._prefixes: dict[tuple[int, int], _Prefix] = {}  # by node and pages of the path
        self._looked_at: tuple[str, int] | None = None
        self.guard.clear()

    # -- the queue ----------------------------------------------------------------------------

    def has_looked(self, head: str) -> bool:
        """Whether nothing was used since the queue was read with ``head`` at its head."""
        return self._looked_at == (head, self.manager.memory.now)

    def look(self, waiting: Sequence[str], read: Read) -> None:
        """Find what the requests ``waiting`` (ids, head first) will hit, and refresh it so that
        what is hit soonest is evicted last. Cheap when nothing was used since the last time."""
        manager = self.manager
        if not manager.policy.waiting_prefixes or not manager.prefix_cache:
            return
        if not waiting:
            self.clear()  # who comes back may have a longer history
        if not waiting or self.has_looked(waiting[0]):
            return
        routes: dict[str, _Route] = {}
        prefixes: dict[tuple[int, int], _Prefix] = {}
        hits: list[tuple[int, _Prefix, int]] = []  # position, what it hits, from which page on
        seen: set[int] = set()
        known = self._routes
        for index, key in enumerate(waiting[:MAX_REQUESTS]):
            route = known.get(key)
            if route is None or (node := route.path.node).version > route.version:
                route = self._route(route, index, read)
                node = route.path.node
            routes[key] = route
            if node.number in seen:
                continue
            path = route.path
            first = _first_unseen_page(node, seen)
            if first >= path.num_pages:
                continue
            prefix = prefixes[node.number, path.num_pages] = self._prefix(path)
            if len(prefix.pages) > first:
                hits.append((index + 1, prefix, first))
        self.wanted = self._wanted(hits)
        for _, prefix, _ in reversed(hits):
            manager.recency.touch_large(prefix.large)
        for prefix in reversed(prefixes.values()):
            if prefix.places:
                manager.recency.touch_places(prefix.places)
        self._routes, self._prefixes = routes, prefixes
        self._waiting = waiting[:MAX_REQUESTS]
        self._looked_at = (waiting[0], manager.memory.now)

    def _route(self, route: _Route | None, index: int, read: Read) -> _Route:
        """The route of the request at ``index``, whose node has changed since it had ``route``."""
        tree = self.manager.tree
        if route is not None and route.is_current(tree):
            route.version = tree.version
            return route
        return _Route.find(tree, *read(index), None if route is None else route.path)

    def _prefix(self, path: Path) -> _Prefix:
        manager, tree = self.manager, self.manager.tree
        prefix = self._prefixes.get((path.node.number, path.num_pages))
        if prefix is not None and not tree.has_changed(path, prefix.version):
            return prefix
        hit = manager.hit_of(path)
        pages, history = tree.pages(hit.path), manager.history(hit.encoder_pages)
        needed = history.held_pages(len(pages) * manager.page_size)
        large = manager.recency.large_pages(history, pages)
        return _Prefix(pages, needed, large, manager.places_of(path), tree.version)

    def _wanted(self, hits: Sequence[tuple[int, _Prefix, int]]) -> list[Wanted]:
        """What each of the ``hits`` adds from the page on that comes with it, if anything."""
        manager, memory = self.manager, self.manager.memory
        page_size = manager.page_size
        large_pages = [0.0] * len(hits)
        for g, stripes in enumerate(memory.stripes):
            parts: list[Ids] = []
            owners: list[int] = []
            for i, (_, prefix, first) in enumerate(hits):
                for start, stop in prefix.needed[g]:
                    if stop > first:
                        parts.append(prefix.pages[max(start, first) : stop])
                        owners.append(i)
            idle = [0] * len(hits)
            for owner, count in zip(owners, _idle_in_each(memory.pins[g], parts), strict=True):
                idle[owner] += count
            for i, count in enumerate(idle):
                large_pages[i] += count * stripes / memory.large.small_per_large[g]
        return [
            Wanted(position, hit := len(prefix.pages) * page_size, hit - first * page_size, large)
            for (position, prefix, first), large in zip(hits, large_pages, strict=True)
            if large
        ]

    # -- the weighing -------------------------------------------------------------------------

    def not_worth(self, demand: Sequence[int], num_running: int) -> float:
        """Large pages of prefixes that others wait for, and that are worth more than a request
        which would push them out: 0 when it is to be admitted.

        ``demand`` are the pages per group that must be found for it now; ``num_running`` requests
        run beside it. Always 0 when none does, so that waiting has an end.
        """
        step_cost_tokens = self.manager.prices.step_cost_tokens
        books = self.manager.memory.large
        if not step_cost_tokens or not num_running or not self.wanted:
            return 0
        if not self.guard.is_trusted:
            return 0
        evictable = books.available
        unwanted = evictable - sum(w.large_pages for w in self.wanted)
        short = sum(in_large_pages(self.manager, demand)) - unwanted
        gain = step_cost_tokens * self.manager.counters.mean_decode_steps
        loss = num_running * books.large_pages_in_use()
        for w in reversed(self.wanted):
            if short <= 0:
                break
            lost_tokens = self.manager.lost_tokens(w.saved_tokens, w.large_pages)
            if loss * lost_tokens > gain * w.position * w.large_pages:
                self._decisive = w
                return short
            short -= w.large_pages
        return 0

    def predict(self) -> None:
        """A request is kept out because `not_worth` has just said so: hold it to that."""
        wanted = present(self._decisive, "nothing has been weighed")
        waiting = self._waiting
        self.guard.predict({waiting[wanted.position - 1]: wanted.hit_tokens}, waiting)


def _idle_in_each(pins: NDArray[np.int32], parts: Sequence[Ids]) -> list[int]:
    """How many pages of each of ``parts``, none of them empty, nobody pins."""
    if not parts:
        return []
    starts = [0, *accumulate([len(part) for part in parts[:-1]])]
    idle = pins[np.concatenate(parts)] == 0
    counts: list[int] = np.add.reduceat(idle, starts, dtype=np.int64).tolist()
    return counts


def _first_unseen_page(node: Node, seen: set[int]) -> int:
    """Where the history of ``node``, itself not ``seen``, leaves what has been, as it is now."""
    current: Node | None = node
    first = 0
    while current is not None and current.parent is not None:
        if current.number in seen:
            first = current.stop
            break
        seen.add(current.number)
        current = current.parent
    return first
