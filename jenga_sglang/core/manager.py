"""What a scheduler asks for: match, lock, reserve, extend, checkpoint, release.

One request's life::

    hit  = manager.match(namespace, tokens)      nothing is written
    pin  = manager.lock(hit)                     the hit's pages cannot be evicted
    manager.reserve([(pin, 700), ...])           all or nothing; evicts what it must
    manager.extend(pin, 700)                     private pages for 700 tokens
    manager.save_states(pin, 0, 700, 700)        room for checkpoints of recurrent states
    manager.checkpoint(pin, namespace, tokens)   whole pages go to the tree, behind-window unpinned
    manager.slide(pin, 701)                      what 701 tokens no longer need is let go
    manager.release(pin)                         private pages are free, tree pages are cached

A request's row, in pages, with who owns what::

    [0, tree_pages)          in the tree, pinned where a group still needs them
    [tree_pages, num_pages)  private
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property, lru_cache

import numpy as np

from jenga_sglang.core.corrupt import none
from jenga_sglang.core.dependency import Dependency, reads_everything
from jenga_sglang.core.eviction import Evictor
from jenga_sglang.core.geometry import Geometry
from jenga_sglang.core.hit import longest_hit
from jenga_sglang.core.ids import Ids, ceil_div, round_up, without_repeats
from jenga_sglang.core.memory import Memory, default_virtual_pages
from jenga_sglang.core.pin import Counters, Hit, Pin
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.ranges import Range, intersect, page_ranges, subtract, union
from jenga_sglang.core.recount import check_pins, check_retired, check_tree_pages
from jenga_sglang.core.states import States, due
from jenga_sglang.core.tree import Path, PrefixTree, Tokens

REMEMBERED = 1 << 14  # answers about lengths of histories
FIRST_OUTPUT_TOKENS = 128.0  # the mean output before any request has finished
OUTPUT_WEIGHT = 1 / 64  # of the last output in the running mean


class Manager:
    """Decides for one pool. Deterministic: the same calls in the same order decide alike."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        max_requests: int,
        max_length: int,
        prefix_cache: bool = True,
        policy: CachePolicy | None = None,
    ) -> None:
        self.geometry = geometry
        self.page_size = geometry.page_size
        self.max_length = max_length
        self.max_requests = max_requests
        self.prefix_cache = prefix_cache
        self.policy = policy or CachePolicy()
        self.dependencies = [g.spec.dependency.effective(max_length) for g in geometry.groups]
        # Pages that every longer history needs: losing one puts all that follows out of reach.
        # Counted from the first page of text, except where a group reads what an encoder made.
        self.permanent: list[tuple[Range, ...]] = [
            () if cut.spec.is_state else page_ranges(d.needed(max_length), self.page_size)
            for d, cut in zip(self.dependencies, geometry.groups, strict=True)
        ]
        self.retired: set[int] = set()  # groups of rows that were (`core.live_groups`)
        # The same few lengths are asked about again and again.
        self.page_ranges = lru_cache(REMEMBERED)(self._page_ranges)
        self._kept = lru_cache(REMEMBERED)(self._kept_ranges)
        self.counters = Counters()
        self.mean_output_tokens = FIRST_OUTPUT_TOKENS
        self.changes = 0  # never the same number twice, so that a recount is known to be of now
        self.reset()

    def reset(self) -> None:
        """Forget everything. No request may hold a pin."""
        num_virtual = default_virtual_pages(self.geometry, self.max_requests, self.max_length)
        self.memory = Memory(self.geometry, num_virtual, self.max_requests)
        for groups in (self.memory.row_groups, self.memory.encoder_groups):
            groups[:] = [g for g in groups if g not in self.retired]
        self.states = States(self.memory)
        self.tree = PrefixTree(self.page_size, num_virtual)
        self.evictor = Evictor(self.memory, self.tree, self.permanent, self.counters, self.policy)
        self.changes += 1
        self._next_pin = 0
        self._scarce = False
        self.pins: dict[int, Pin] = {}

    # -- prefix hits --------------------------------------------------------------------------

    def match(self, namespace: Hashable, tokens: Tokens) -> Hit:
        """The longest prefix of ``tokens``, in whole pages, that every group can continue from.

        ``namespace`` is anything; a `core.tree.Encoded` says that an encoder made the first tokens.
        """
        if not self.prefix_cache:
            return self.miss(namespace)
        return self.hit_of(self.tree.find(namespace, tokens))

    def hit_of(self, path: Path) -> Hit:
        """The longest prefix of ``path`` that every group can continue from."""
        pages, encoder_pages = self.tree.pages(path), path.node.encoder_pages
        length, cut_by = longest_hit(
            path.num_pages,
            self.page_size,
            self._dependencies_after(encoder_pages),
            lambda g, length: self.page_ranges(g, length, encoder_pages),
            lambda g, wanted: self._refusal(g, pages, wanted, encoder_pages),
        )
        return Hit(Path(path.node, length), path.num_pages, cut_by)

    def _refusal(self, group: int, pages: Ids, wanted: Range, encoder_pages: int) -> int | None:
        missing = self.memory.first_missing(group, pages[wanted.start : wanted.stop])
        if missing is None:
            return None
        length = wanted.start + missing
        if self.dependencies[group].needs_last:
            # The next prefix that ends with a page that is held, or the one without any text.
            held = np.flatnonzero(self.memory.holds(group, pages[:length]))
            length = int(held[-1]) + 1 if len(held) else min(length, encoder_pages)
        return length

    def _page_ranges(self, group: int, length: int, encoder_pages: int = 0) -> tuple[Range, ...]:
        """The pages of a history of ``length`` tokens that ``group`` still needs, of which an
        encoder made the first ``encoder_pages``."""
        dependency = self.dependency(group, encoder_pages)
        return page_ranges(dependency.needed(length), self.page_size)

    def dependency(self, group: int, encoder_pages: int) -> Dependency:
        """What ``group`` needs of a history whose first ``encoder_pages`` an encoder made."""
        return self.dependencies[group].after_encoder(encoder_pages * self.page_size)

    def _dependencies_after(self, encoder_pages: int) -> Sequence[Dependency]:
        if not encoder_pages and not self.memory.encoder_groups:
            return self.dependencies
        return [self.dependency(g, encoder_pages) for g in self._groups]

    def miss(self, namespace: Hashable) -> Hit:
        """The empty prefix."""
        return Hit(Path(self.tree.root(namespace), 0), 0, None)

    def lock(self, hit: Hit) -> Pin:
        """Pin what a request that continues from ``hit`` needs."""
        pages = self.tree.pages(hit.path)
        length, encoder_pages = len(pages) * self.page_size, hit.path.node.encoder_pages
        held = [list(self.page_ranges(g, length, encoder_pages)) for g in self._groups]
        self._next_pin += 1
        pin = Pin(self._next_pin, pages, len(pages), len(pages), held, hit)
        pin.path = Path(hit.path.node, hit.matched_pages)
        pin.length = len(pages) * self.page_size
        pin.held_for_others = [[] for _ in self._groups]
        pin.groups = tuple(self.memory.row_groups)
        pin.encoder_groups = tuple(self.memory.encoder_groups)
        pin.encoder_pages = encoder_pages
        # A history that merely ends, perhaps because the rest was evicted, parts from nothing.
        pin.branch_ahead = hit.matched_pages > hit.path.num_pages and self.tree.goes_on(
            Path(hit.path.node, hit.matched_pages)
        )
        for g, ranges in enumerate(held):
            for r in ranges:
                self.memory.pin(g, pages[r.start : r.stop])
        self.memory.pin_virtual(pages)
        self.pins[pin.number] = pin
        self.changes += 1
        return pin

    def release(self, pin: Pin) -> None:
        """Drop every pin: private pages are freed, tree pages become cached."""
        del self.pins[pin.number]
        self.states.stop(pin)
        self._let_go_for_others(pin)
        for g, ranges in enumerate(pin.held):
            for r in ranges:
                self.memory.unpin(g, pin.pages[r.start : r.stop])
        self.evictor.forget_hollow(self.memory.unpin_virtual(pin.row))
        self.tree.forget_empty_roots()
        pin.num_pages = pin.tree_pages = pin.length = 0
        self.changes += 1

    def finished(self, output_tokens: int) -> None:
        """A request has ended by itself after so many tokens."""
        self.mean_output_tokens += OUTPUT_WEIGHT * (output_tokens - self.mean_output_tokens)

    # -- room ---------------------------------------------------------------------------------

    def new_pages(self, pin: Pin, length: int) -> int:
        """Pages that ``pin`` lacks to hold ``length`` tokens."""
        return max(0, ceil_div(length, self.page_size) - pin.num_pages)

    def can_serve(self, pages: Sequence[int]) -> bool:
        """Whether ``pages`` new pages per group fit once everything cached has gone."""
        stripes = self.memory.stripes
        demand = [n * s for n, s in zip(pages, stripes, strict=True)]
        return self.memory.large.can_serve(demand)

    def can_serve_pages(self, pages: int) -> bool:
        """Whether ``pages`` new pages fit in every group at once, as `reserve` would see it, for
        requests that run already."""
        return self._can_serve_at_last(self.memory.small_demand(pages))

    def reserve(self, demands: Sequence[tuple[Pin, int]]) -> bool:
        """Make room for every (pin, pages) demand, or change nothing but the cache.

        Evicts cached pages as needed. False when the demands together do not fit, whatever is
        evicted. After True, `extend` cannot fail for these demands.
        """
        own_demands = [
            (pin, self.memory.demand_of_parts(pin.parts(pages), self.states.needs_slot(pin)))
            for pin, pages in demands
        ]
        demand = [sum(counts) for counts in zip(*[own for _, own in own_demands], strict=True)]
        total = sum([pages for _, pages in demands])
        if not self._can_serve_at_last(demand) or not self._can_name(total):
            self.counters.refused_reservations += 1
            return False
        self._scarce = self.evictor.make_room(own_demands, demand)
        return True

    def _can_name(self, pages: int) -> bool:
        """Whether there are ids for ``pages`` virtual pages, once cached ones have gone. They can
        only run out where a group that depends on everything has been retired: a request keeps
        the ids of pages that it has let go of in every group."""
        missing = pages - self.memory.num_free_virtual
        return missing <= 0 or self.evictor.evict(missing) >= missing

    def _can_serve_at_last(self, demand: Sequence[int]) -> bool:
        """Whether ``demand`` fits; running requests give up what they hold for others first, and
        what they have not published yet and need no more."""
        for pin in self.pins.values():
            if self.memory.large.can_serve(demand):
                return True
            self._slide(pin, pin.waiting_slide_pages)
            self._let_go_for_others(pin)
        return self.memory.large.can_serve(demand)

    def extend(self, pin: Pin, length: int, *, publish: bool = True) -> Ids:
        """Give ``pin`` private pages for ``length`` tokens and return them.

        A `checkpoint` is to ``publish`` them, and no window slides over them before: see `slide`.
        Raises ``MemoryError`` and changes nothing if the pages were never reserved.
        """
        pages = self.memory.take(
            pin.parts(self.new_pages(pin, length)),
            pin.number,
            states=self.states.needs_slot(pin),
            scarce=self._scarce,
        )
        self.states.start(pin, scarce=self._scarce)
        if not pin.touched:
            self._count_hit(pin)
        pin.append(pages)
        pin.length = length
        if publish and self.prefix_cache:
            pin.to_publish_pages = length // self.page_size
        return pages

    def extend_each(self, pins: Sequence[Pin]) -> Ids:
        """Give each of ``pins``, which run and have filled their pages, a private page for its next
        token; return the pages in order. An answer is published when it has ended, with what the
        windows hold by then.

        Raises ``MemoryError`` and changes nothing if the pages were never reserved.
        """
        groups = pins[0].groups
        if any(pin.groups != groups or pin.num_pages < pin.encoder_pages for pin in pins):
            # A group was born or retired between them, or an encoder makes the next page.
            return np.concatenate([self.extend(pin, pin.length + 1, publish=False) for pin in pins])
        pages = self.memory.take_each(groups, [pin.number for pin in pins], scarce=self._scarce)
        for pin, page in zip(pins, pages.tolist(), strict=True):
            pin.append_one(page)
            pin.length += 1
        return pages

    def save_states(
        self, pin: Pin, start: int, stop: int, prompt: int, *, crowded: bool = False
    ) -> None:
        """Have the step that takes ``pin`` from ``start`` to ``stop`` tokens leave checkpoints of
        its recurrent states, where a later request may continue: every so many tokens, where
        this prompt leaves a known history, before the end of the ``prompt`` and, unless it is
        ``crowded`` (others wait for memory), near the end of the answer.

        Called when all of a batch has been extended. A checkpoint that finds no room is skipped
        and counted.
        """
        if not self.memory.state_groups or not self.prefix_cache:
            return
        others = [prompt - 1]
        if self.policy.keep_branches and pin.branch_ahead:
            others.append(pin.hit.matched_pages * self.page_size)
        for page in due(start, stop, self.state_interval, others, self.page_size):
            self._save_state(pin, page)
        if interval := round_up(self.policy.answer_state_tokens, self.page_size):
            length = stop // interval * interval
            if length > max(start, prompt):
                self._follow_answer(pin, length // self.page_size, crowded)

    def _save_state(self, pin: Pin, page: int) -> bool:
        if not self.states.can_save(pin, page):
            return False
        demand = self.memory.small_demand(0, states=1)
        if not self.memory.large.can_serve(demand):
            self.counters.skipped_checkpoints += 1
            return False
        self.evictor.make_any_room(demand)
        self.states.save(pin, page, self.page_size)
        self.counters.saved_checkpoints += 1
        return True

    def _follow_answer(self, pin: Pin, page: int, crowded: bool) -> None:
        if pin.answer_page:
            if self.states.can_save(pin, page):
                self.states.move_answer(pin, page, self.page_size)
        elif not crowded and self._save_state(pin, page):
            pin.answer_page = page

    def let_go_of_answers(self) -> bool:
        """Free the checkpoints that move along with answers; whether there were any."""
        following = [pin for pin in self.pins.values() if pin.answer_page]
        for pin in following:
            self.states.drop_answer(pin)
        return bool(following)

    @property
    def state_interval(self) -> int:
        """Tokens from one checkpoint of recurrent states to the next."""
        groups = self.geometry.groups
        state_bytes = sum(groups[g].page_bytes for g in self.memory.state_groups)
        row_bytes = sum(
            groups[g].spec.bytes_per_token
            for g in self.memory.row_groups
            if reads_everything(self.dependencies[g], self.max_length)
        )
        tokens = max(1, self.policy.state_interval_tokens, state_bytes // max(1, row_bytes))
        return round_up(tokens, self.page_size)

    def _count_hit(self, pin: Pin) -> None:
        pin.touched = True
        self.memory.tick()
        pin.kept.append(pin.num_pages * self.page_size)
        if self.tree.goes_on(pin.hit.path):
            pin.shared.append(pin.num_pages * self.page_size)
        self._touch(pin.row, pin.kept, pin.encoder_pages)
        if pin.hit.cut_by is not None:
            lost = pin.hit.matched_pages - pin.hit.path.num_pages
            self.counters.lost_hit_tokens[pin.hit.cut_by] += lost * self.page_size

    def slide(self, pin: Pin, length: int) -> None:
        """Let go of what a history of ``length`` computed tokens no longer needs.

        Rounded down to whole pages, so that the last page boundary stays a possible hit. Where
        `extend` computed what a `checkpoint` has not published yet, it slides as far as the tree
        has got: hits in what is to be published need the rest. That waits for the checkpoint, but
        not longer than to the next slide, and gives way to a reservation that would fail.
        """
        whole = length // self.page_size
        if whole > pin.tree_pages and self._is_to_wait(pin, whole):
            pin.waiting_slide_pages = whole
            whole = pin.tree_pages
        self._slide(pin, whole)

    def _is_to_wait(self, pin: Pin, whole: int) -> bool:
        """Whether a slide to ``whole`` pages would let go of what is to be published."""
        if pin.to_publish_pages <= pin.tree_pages:
            return False
        return not pin.waiting_slide_pages or whole <= pin.waiting_slide_pages

    def _slide(self, pin: Pin, whole: int) -> None:
        """Let go of what a history of ``whole`` pages no longer needs."""
        if whole >= pin.waiting_slide_pages:
            pin.waiting_slide_pages = 0
        if whole <= pin.slid_pages:
            return
        pin.slid_pages = whole
        if whole > pin.tree_pages:
            pin.to_publish_pages = 0
        for g in self.forgetful:
            if not pin.held[g]:
                continue
            needed = self.page_ranges(g, whole * self.page_size, pin.encoder_pages)
            pin.held[g], gone = _divide(pin.held[g], needed, whole)
            if gone and pin.shared and (kept := self._worth_holding(g, pin, gone)):
                pin.held_for_others[g] = union([*pin.held_for_others[g], *kept])
                gone = [] if kept == gone else subtract(gone, kept)
            for start, stop in gone:
                self.memory.unpin(g, pin.pages[start:stop])

    def _worth_holding(self, group: int, pin: Pin, gone: Sequence[Range]) -> list[Range]:
        """Tree pages of ``group`` among those ``gone`` that hits of the shared lengths need."""
        if not self.policy.hold_hits or gone[0].start * self.page_size >= max(pin.shared):
            return []
        kept: list[Range] = []
        for length in pin.shared:
            length = length // self.page_size * self.page_size
            needed = self.page_ranges(group, length, pin.encoder_pages)
            hit = intersect(gone, needed)
            if hit and self._pays(group, pin, length, needed):
                kept += hit
        if len(kept) > 1:
            kept = union(kept)
        if kept and kept[-1].stop > pin.tree_pages:
            kept = intersect(kept, [Range(0, pin.tree_pages)])
        return kept

    def _pays(self, group: int, pin: Pin, length: int, needed: Sequence[Range]) -> bool:
        """Whether holding the pages ``needed`` for a hit of ``length`` tokens is worth more than
        one more request that runs in their place.

        The weighing is that of `core.lookahead`, with R running requests that use U large pages, A
        each. A request is admitted every ``mean_output_tokens / R`` steps; of those that run, H
        hold this prefix, so one in R / H of those to come is taken to want it. The B large pages
        save, by step, ``length · H / mean_output_tokens``, and would earn in a request's place
        ``step_cost_tokens / R · B / A``, where R · A is U.
        """
        memory = self.memory
        small = sum([stop - start for start, stop in needed]) * memory.stripes[group]
        large = small / memory.large.small_per_large[group]
        holders = memory.pins.item(group, pin.pages.item(needed[-1].stop - 1))
        cost_tokens = self.policy.step_cost_tokens * self.mean_output_tokens
        saved_tokens = length * holders
        return saved_tokens * self._large_in_use() >= cost_tokens * large

    def _large_in_use(self) -> float:
        """What running requests pin, in large pages and parts of them."""
        books = self.memory.large
        return sum([n / k for n, k in zip(books.num_used, books.small_per_large, strict=True)])

    def _let_go_for_others(self, pin: Pin) -> None:
        for g, ranges in enumerate(pin.held_for_others):
            for r in ranges:
                self.memory.unpin(g, pin.pages[r.start : r.stop])
            ranges.clear()
        pin.answer_page = 0

    # -- the tree -----------------------------------------------------------------------------

    def checkpoint(
        self,
        pin: Pin,
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
        num_pages = len(tokens) // self.page_size
        tokens = tokens[: num_pages * self.page_size]
        path = self.tree.find(namespace, tokens, pin.path)
        known = path.num_pages
        if known > pin.tree_pages:
            self._merge(pin, path)
        if num_pages > max(known, pin.tree_pages):
            own = pin.pages[known:num_pages]
            path = self.tree.extend(path, tokens, own)
            self._move_to_tree(own, known, pin.encoder_pages)
        pin.path = path
        self._publish_states(pin, num_pages)
        pin.tree_pages = max(pin.tree_pages, num_pages)
        pin.kept += [len(tokens)] if keep is None else keep
        branch = pin.hit.matched_pages
        if self.policy.keep_branches and pin.branch_ahead and branch <= num_pages:
            pin.kept.append(branch * self.page_size)
            pin.shared.append(branch * self.page_size)
            pin.branch_ahead = False
        self.slide(pin, max(len(tokens), pin.waiting_slide_pages * self.page_size))
        self.memory.tick()
        self._touch(pin.row[: pin.tree_pages], pin.kept, pin.encoder_pages)

    def _publish_states(self, pin: Pin, num_pages: int) -> None:
        """Checkpoints that are in the tree now need no pin, but are worth keeping."""
        if pin.answer_page <= num_pages:
            pin.answer_page = 0
        for g in self.memory.state_groups:
            fresh = intersect(pin.held_for_others[g], [Range(pin.tree_pages, num_pages)])
            for r in fresh:
                self.memory.unpin(g, pin.pages[r.start : r.stop])
                pin.kept += [n * self.page_size for n in range(r.start + 1, r.stop + 1)]
            pin.held_for_others[g] = subtract(pin.held_for_others[g], fresh)

    def prompt_slack(self, prompt_tokens: int) -> int:
        """How far before the end of a prompt a hit is kept possible, in tokens: the policy's
        number, or less where groups that forget would hold more than a twentieth of what the
        prompt takes for ever."""
        lasting, fleeting = self._page_bytes
        if not fleeting:
            return 0
        return min(self.policy.prompt_slack_tokens, prompt_tokens * lasting // (20 * fleeting))

    def refresh(self, hit: Hit) -> None:
        """Make what ``hit`` needs the last to be evicted: somebody is going to ask for it."""
        self.touch_large(self.large_pages_of(hit, self.tree.pages(hit.path)))

    def large_pages_of(self, hit: Hit, pages: Ids) -> list[Ids]:
        """The large pages of every group in which what ``hit`` of ``pages`` needs lies, hardly any
        twice. They stay the same until `PrefixTree.has_changed` says otherwise."""
        encoder_pages = hit.path.node.encoder_pages
        found: list[Ids] = []
        for g in self._groups:
            kept = self._kept(g, len(pages), encoder_pages, len(pages) * self.page_size)
            parts = [self.memory.large_pages(g, pages[start:stop]) for start, stop in kept]
            large = np.concatenate(parts) if parts else np.empty(0, np.int64)
            # Neighbours lie together: what repeats, repeats at once.
            found.append(without_repeats(large))
        return found

    def touch_large(self, large: Sequence[Ids]) -> None:
        """One new logical time for ``large`` pages, in every group."""
        self.memory.tick()
        for ids in large:
            if not self.policy.balanced:
                self.memory.tick()
            self.memory.lru.touch(ids, self.memory.now)

    def _merge(self, pin: Pin, path: Path) -> None:
        """Repoint the private pages of ``pin`` that ``path`` covers onto the tree's."""
        first = pin.tree_pages
        mine = pin.pages[first : path.num_pages]
        theirs = self.tree.pages(path)[first:]
        hollow = theirs == 0
        if hollow.any():
            fill = np.where(hollow, mine, 0)
            self.tree.replace(path, first, fill)
            self._move_to_tree(fill, first, pin.encoder_pages)
        if not hollow.all():
            self.tree.change(self.tree.nodes_of(theirs[~hollow]))
            self.memory.merge(mine[~hollow], theirs[~hollow])
        pin.pages[first : path.num_pages] = np.where(hollow, mine, theirs)

    def _move_to_tree(self, pages: Ids, depth: int, encoder_pages: int) -> None:
        """Private ``pages`` are in the tree now, from page ``depth`` of the history; 0 is passed
        over (a hollow page of a prefix that the tree has since forgotten)."""
        held = np.flatnonzero(pages)
        self.memory.move_to_tree(pages[held], held + depth, encoder_pages)

    def _touch(self, pages: Ids, lengths: Sequence[int], encoder_pages: int) -> None:
        """One logical time, in every group, for all that hits of these lengths need of a history,
        and for what every longer history needs of it."""
        for g in self._groups:
            if not self.policy.balanced:
                self.memory.tick()
            ranges = self._kept(g, len(pages), encoder_pages, *lengths)
            for start, stop in ranges:
                self.memory.touch(g, pages[start:stop])

    def _kept_ranges(
        self, group: int, num_pages: int, encoder_pages: int, *lengths: int
    ) -> list[Range]:
        """What hits of ``lengths``, and every longer history, need of the first ``num_pages`` pages
        of one, of which an encoder made the first ``encoder_pages``."""
        permanent = [
            Range(r.start + encoder_pages, r.stop + encoder_pages) for r in self.permanent[group]
        ]
        if group in self.memory.encoder_groups:
            permanent = [Range(0, encoder_pages)]
        everything = [Range(0, num_pages)]
        ranges = intersect(permanent, everything)
        if ranges == everything:
            return ranges
        for n in lengths:
            ranges += self.page_ranges(group, n // self.page_size * self.page_size, encoder_pages)
        return union(ranges)

    def evict(self, pages: int) -> int:
        """Evict until ``pages`` virtual pages are free that were not; how many it came to."""
        return self.evictor.evict(pages)

    def give_up(self, path: Path) -> None:
        """Evict what every group holds of ``path``, which nobody may have pinned."""
        for g in self._groups:
            # Evicting in one group may put the rest out of reach, in all of them.
            if self.tree.is_alive(path.node):
                self.evictor.evict_pages(g, self.tree.pages(path))

    # -- helpers ------------------------------------------------------------------------------

    @property
    def _groups(self) -> range:
        return range(len(self.dependencies))

    @cached_property
    def forgetful(self) -> list[int]:
        """Groups that let go of pages while a request runs."""
        return [
            g
            for g, dependency in enumerate(self.dependencies)
            if not reads_everything(dependency, self.max_length)
        ]

    @cached_property
    def _page_bytes(self) -> tuple[int, int]:
        """Bytes of a page of text in all groups that keep it for ever, and in all that let go."""
        lasting = fleeting = 0
        for g, cut in enumerate(self.geometry.groups):
            if g not in self.forgetful:
                lasting += cut.page_bytes
            elif g in self.memory.row_groups:
                fleeting += cut.page_bytes
        return lasting, fleeting

    def groups_changed(self) -> None:
        """A group was registered or retired."""
        self.changes += 1
        self.tree.change(self.tree)
        self.page_ranges.cache_clear()
        self._kept.cache_clear()
        for name in ("forgetful", "_page_bytes"):
            self.__dict__.pop(name, None)

    def check_idle(self) -> None:
        """`check`, and that nothing is pinned. Raises `CorruptPool`."""
        self.check()
        none("requests that still hold pages", self.pins)
        none("small pages used by nobody, by group", filter(None, self.memory.large.num_used))

    def check(self) -> None:
        """Recount all of it; raise `CorruptPool` at the first difference."""
        self.memory.check()
        self.tree.check()
        self.states.check(self.pins.values())
        check_pins(self.memory, self.pins.values())
        check_tree_pages(self.memory, self.tree)
        check_retired(self.memory, self.retired)


def _divide(
    held: list[Range], needed: Sequence[Range], front: int
) -> tuple[list[Range], list[Range]]:
    """``held`` page ranges, those that stay and those that go: what is ``needed`` stays, and all
    from page ``front`` on."""
    if len(needed) > 1 or not needed or needed[0].stop != front:
        gone = subtract(held, union([*needed, Range(front, max(front, held[-1].stop))]))
        return subtract(held, gone), gone
    # A window that moves with the front, as nearly all do.
    start = needed[0].start
    first, stop = held[0]
    if first >= start:
        return held, []
    if len(held) == 1 and start < stop:
        return [Range(start, stop)], [Range(first, start)]
    gone = [Range(a, min(b, start)) for a, b in held if a < start]
    return [Range(max(a, start), b) for a, b in held if b > start], gone
