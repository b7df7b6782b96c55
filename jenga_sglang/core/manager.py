"""What a scheduler asks for: match, lock, reserve, extend, publish, release.

One request's life::

    hit = manager.match(namespace, tokens)         nothing is written
    running = manager.lock(hit)                    the hit's pages cannot be evicted
    manager.reserve([(running, 700), ...])         all or nothing; evicts what it must
    manager.extend(running, 700)                   private pages for 700 tokens
    manager.save_states(running, 0, 700, 700)      room for snapshots of recurrent states
    manager.end_step()                             what no later token reads is free
    manager.publish(running, namespace, tokens)    whole pages go to the tree
    manager.slide(running, 701)                    what 701 tokens no longer need is let go
    manager.extend_tail(running, 720)              room for drafts of tokens that may be accepted
    manager.commit(running, 704)                   three of them were
    manager.release(running)                       private pages are free, tree pages are cached

The questions about prefixes are in `core.prefixes`, those about room in `core.room`. What a request
holds is in `core.running`, what the groups need of it in `core.needs`, what it holds for others in
`core.holding`, what a step alone reads in `core.passing`, its recurrent states in `core.recurrent`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from jenga_sglang.core.books.corrupt import none, within
from jenga_sglang.core.books.memory import Memory, default_virtual_pages
from jenga_sglang.core.books.tree import Path, PrefixTree, Tokens
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.eviction import Evictor
from jenga_sglang.core.holding import Holding
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.needs import History, Needs
from jenga_sglang.core.passing import Passing
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.prices import Prices
from jenga_sglang.core.publisher import Publisher
from jenga_sglang.core.recency import Order, Recency
from jenga_sglang.core.recount import (
    check_memory,
    check_passing,
    check_pins,
    check_retired,
    check_tree_pages,
)
from jenga_sglang.core.recurrent import Snapshots
from jenga_sglang.core.room import Room
from jenga_sglang.core.running import Counters, Hit, Running


class Manager(Room):
    """Decides for one pool. Deterministic: the same calls in the same order decide alike."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        max_requests: int,
        max_length: int,
        prefix_cache: bool = True,
        policy: CachePolicy | None = None,
        tail_tokens: int = 0,
        order: Order = Order.LRU,
    ) -> None:
        self.geometry = geometry
        self.page_size = geometry.page_size
        self.max_length = max_length
        self.max_requests = max_requests
        # A request that decodes may write so many tokens beyond those that it has for good: drafts.
        self.tail_tokens = tail_tokens
        self.prefix_cache = prefix_cache
        self.policy = policy or CachePolicy()
        self.order = order
        self.needs = Needs(geometry, max_length)
        self.counters = Counters()
        self.prices = Prices(self.policy)
        self.changes = 0  # never the same number twice, so that a recount is known to be of now
        self.reset()

    def reset(self) -> None:
        """Forget everything. No request may run."""
        self.memory = self._new_memory()
        for groups in (self.memory.row_groups, self.memory.encoder_groups):
            groups[:] = [g for g in groups if g not in self.needs.retired]
        self.tree = PrefixTree(self.page_size, self.memory.num_virtual)
        self.evictor = self._new_evictor()
        books, policy, counters = (self.memory, self.needs), self.policy, self.counters
        self.holding = Holding(*books, policy, counters, self.prices)
        self.snapshots = Snapshots(*books, self.evictor, policy, counters)
        self.recency = Recency(self.memory, policy, self.order)
        self.publisher = Publisher(self.memory, self.tree)
        self.passing = Passing(*books, policy)
        self.changes += 1
        self._histories: dict[int, History] = {}
        self._last_number = 0
        self.scarce = False
        self.running: dict[int, Running] = {}

    def _new_memory(self) -> Memory:
        num_virtual = default_virtual_pages(self.geometry, self.max_requests, self.max_length)
        return Memory(self.geometry, num_virtual, self.max_requests)

    def names_aside(self) -> Ids:
        """Virtual pages that are pinned once, by nobody who runs; 0 is none."""
        return np.empty(0, np.int64)

    def _new_evictor(self) -> Evictor:
        return Evictor(self.memory, self.tree, self.needs.permanent, self.counters, self.policy)

    @property
    def memories(self) -> list[Memory]:
        """The books of every tier, the pool's first."""
        return [self.memory]

    # -- locks --------------------------------------------------------------------------------

    def lock(self, hit: Hit) -> Running:
        """Pin what a request that continues from ``hit`` needs."""
        running = self._begin(hit)
        for g, ranges in enumerate(running.held):
            for held in running.of(ranges):
                self.memory.pin(g, held)
        self._register(running)
        return running

    def _begin(self, hit: Hit) -> Running:
        """A request that continues from ``hit``, with its names pinned and nothing in any group."""
        pages, history = self.tree.pages(hit.path), self.history(hit.encoder_pages)
        self._last_number += 1
        self.memory.pin_virtual(pages)
        return Running(
            self._last_number,
            hit,
            history,
            pages,
            history.held_pages(len(pages) * self.page_size),
            tuple(self.memory.row_groups),
            tuple(self.memory.encoder_groups),
            _leaves_known_history(self.tree, hit),
        )

    def _register(self, running: Running) -> None:
        self.running[running.number] = running
        self.changes += 1

    def release(self, running: Running) -> None:
        """Drop every pin: private pages are freed, tree pages become cached."""
        del self.running[running.number]
        self.passing.end(running)
        self.snapshots.stop(running)
        self.holding.give_up(running)
        for g, ranges in enumerate(running.held):
            for pages in running.of(ranges):
                self.memory.unpin(g, pages)
        self.evictor.forget_hollow(self.memory.unpin_virtual(running.row))
        self.tree.forget_empty_roots()
        running.end()
        self.changes += 1

    # -- growing ------------------------------------------------------------------------------

    def extend(self, running: Running, length: int, *, publish: bool = True) -> Ids:
        """Give ``running`` private pages for ``length`` tokens and return them.

        With ``publish`` a call of `publish` is to follow, and no window slides over them before
        (see `slide`). Raises ``MemoryError`` and changes nothing if the pages were never reserved.
        """
        self.passing.end(running)
        growth = running.next_growth(self.new_pages(running, length))
        states = self.snapshots.needs_state_page(running)
        pages = self.memory.take(
            growth.parts,
            running.number,
            states=states,
            scarce=self.scarce,
            shared=growth.shared,
        )
        if states:
            self.snapshots.start(running, scarce=self.scarce)
        if not running.touched:
            self.use_hit(running)
        running.grow(pages, length, publish=publish and self.prefix_cache, parts=growth.parts)
        if growth.shared:
            self.passing.begin(running, pages, growth.shared)
        return pages

    def use_hit(self, running: Running) -> None:
        """``running`` begins to use its hit; counted and refreshed once."""
        if running.touched:
            return
        running.touched = True
        hit, num_pages = running.hit, running.num_pages
        running.keep_hit(num_pages * self.page_size, shared=self.tree.goes_on(hit.path))
        if self.memory.is_weighing:
            self.recency.count_hit(running)
        self.recency.touch(running, num_pages)
        if hit.cut_by is not None:
            self.counters.lost_hit_tokens[hit.cut_by] += hit.lost_pages * self.page_size

    def extend_each(self, batch: Sequence[Running]) -> Ids:
        """Give each of ``batch``, which have filled their pages, a private page for its next
        token; return the pages in order. An answer is published when it has ended.

        Raises ``MemoryError`` and changes nothing if the pages were never reserved.
        """
        groups = batch[0].groups
        if any(r.groups != groups or r.num_pages < r.encoder_pages for r in batch):
            # A group was born or retired between them, or an encoder makes the next page.
            return np.concatenate([self.extend(r, r.length + 1, publish=False) for r in batch])
        pages = self.memory.take_each(groups, [r.number for r in batch], scarce=self.scarce)
        for running, page in zip(batch, pages.tolist(), strict=True):
            running.grow_by_token(page)
        return pages

    def extend_tail(self, running: Running, stop: int) -> Ids:
        """Give ``running`` private pages up to ``stop`` tokens and return them; its length stays.

        They are its *tail*: room for drafts, written by every step until they are accepted.
        Raises ``MemoryError`` and changes nothing if the pages were never reserved.
        """
        parts = running.parts(self.new_pages(running, stop))
        pages = self.memory.take(parts, running.number, scarce=self.scarce)
        running.grow(pages, running.length)
        return pages

    def commit(self, running: Running, length: int) -> None:
        """Of its tail, ``running`` has accepted all up to ``length`` tokens: they are there for
        good, and windows slide to them, never further."""
        within("committed tokens", length, running.length, running.num_pages * self.page_size)
        running.grow_within_pages(length)
        self.slide(running, length)

    def save_states(
        self,
        running: Running,
        start: int,
        stop: int,
        prompt: int,
        partings: Sequence[int] = (),
        *,
        crowded: bool = False,
    ) -> None:
        """Have the step that takes ``running`` from ``start`` to ``stop`` tokens leave snapshots of
        its recurrent states, where a later request may continue: where this prompt leaves a known
        history, at the ``partings`` (tokens) where requests that wait leave this one, at a few
        guessed places, before the end of the ``prompt`` and, unless it is ``crowded`` (others wait
        for memory), near the end of the answer. For a batch that has been extended; a snapshot
        without room is skipped and counted, but for one that spares too little to evict for
        (`CachePolicy.snapshot_gain_percent`).
        """
        if self.memory.state_groups and self.prefix_cache:
            self.snapshots.leave(running, start, stop, prompt, partings, crowded=crowded)

    def let_go_of_answers(self) -> bool:
        """Free the snapshots that move along with answers; whether there were any."""
        requests = self.running.values() if self.memory.state_groups else ()
        return sum(map(self.snapshots.drop_answer, requests)) > 0

    def end_step(self) -> None:
        """The last step has been launched: pages are free that it alone reads (`core.passing`). Not
        between the calls that prepare a step."""
        self.passing.end_all()

    def slide(self, running: Running, length: int) -> None:
        """Let go of what a history of ``length`` computed tokens no longer needs.

        Rounded down to whole pages, so that the last page boundary stays a possible hit. Where
        `extend` computed what is to be published and is not yet, it slides as far as the tree
        has got: hits in what is to be published need the rest. That waits for `publish`, but
        not longer than to the next slide, and gives way to a reservation that would fail.
        """
        if running.passing:
            self.passing.end(running)
        num_pages = length // self.page_size
        self.holding.slide(running, running.slide_target(num_pages))

    # -- the tree -----------------------------------------------------------------------------

    def publish(
        self,
        running: Running,
        namespace: Hashable,
        tokens: Tokens,
        keep: Sequence[int] | None = None,
    ) -> None:
        """Put the whole pages of ``tokens``, computed by the request, into the tree.

        Pages that the tree knows already are merged: the request goes on with the tree's page
        and its own copy is freed, or fills what the tree's page lacks. Then slides. ``keep`` are
        the lengths at which a later hit is worth keeping, in tokens; their end by default. What
        only hits in between would need is the first to go.
        """
        if not self.prefix_cache:
            return
        self.passing.end(running)
        num_pages = len(tokens) // self.page_size
        tokens = tokens[: num_pages * self.page_size]
        path = self.publisher.insert(running, namespace, tokens)
        if self.memory.state_groups:
            self.snapshots.publish(running, num_pages)
        running.published(path, num_pages)
        running.keep_hit(*([len(tokens)] if keep is None else keep))
        if self.policy.keep_branches and running.reached_branch(num_pages):
            running.keep_hit(running.hit.matched_pages * self.page_size, shared=True)
        waiting = running.waiting_slide_pages * self.page_size
        self.slide(running, max(len(tokens), waiting))
        self.recency.touch(running, running.tree_pages)

    # -- books --------------------------------------------------------------------------------

    def check_idle(self) -> None:
        """`check`, and that nothing is pinned. Raises `CorruptPool`."""
        self.check()
        none("requests that still hold pages", self.running)
        none("small pages used by nobody, by group", filter(None, self.memory.large.num_used))

    def check(self) -> None:
        """Recount all of it; raise `CorruptPool` at the first difference."""
        check_memory(self.memory)
        self.tree.check()
        self.snapshots.check(self.running.values())
        check_passing(self.memory, self.running.values())
        check_pins(self.memory, self.running.values(), self.names_aside())
        check_tree_pages(self.memory, self.tree)
        check_retired(self.memory, self.needs.retired)


def _leaves_known_history(tree: PrefixTree, hit: Hit) -> bool:
    """Whether more of a history is known than ``hit``, and goes on otherwise. One that merely
    ends, perhaps because the rest was evicted, parts from nothing."""
    node, matched_pages = hit.path.node, hit.matched_pages
    return matched_pages > hit.path.num_pages and tree.goes_on(Path(node, matched_pages))
