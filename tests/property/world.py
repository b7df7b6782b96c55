"""Rules for a manager and the naive model: each does the same to both."""

from collections.abc import Hashable, Sequence

import core_inspector as inside
import numpy as np
from core_inspector import contents, places
from naive_cache import Request
from pair import Pair
from random_pools import Pick, Pool, choose

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.passing import Wanted

NUM_DOCUMENTS = 3

Places = dict[int, set[int]]  # by group


class World(Pair):
    """Rules are methods that take ``pick``; `check` compares everything after each of them.

    Named in `RULES` as often as a random driver should choose them.
    """

    def __init__(self, pool: Pool, pick: Pick) -> None:
        super().__init__(pool)
        self.documents = [self._document(pick, n) for n in range(NUM_DOCUMENTS)]
        self.crowded = False
        self.to_pass: list[Places] = []

    # -- rules --------------------------------------------------------------------------------

    def start(self, pick: Pick) -> None:
        """A request looks up its longest hit and locks it."""
        if len(self.live) < self.pool.max_requests:
            self._lock(choose(pick, self.namespaces), self._random_tokens(pick))

    def start_twins(self, pick: Pick) -> None:
        """Two requests race on one prefix: both look it up before either has computed it."""
        if len(self.live) + 2 > self.pool.max_requests:
            return
        tokens = self._random_tokens(pick)
        namespace = choose(pick, self.namespaces)
        twins = [self._lock(namespace, tokens), self._lock(namespace, tokens)]
        if self._grow([(r, len(tokens)) for r in twins]):
            for request in twins:
                self._publish(request, request.length)

    def overlap(self, pick: Pick) -> None:
        """Requests compute what they have; pages for the next tokens are taken before that is
        published, as an overlapped server does it. It is as if it had been published at once."""
        batch = [r for r in self.live if r.length < len(r.tokens) and not r.waits and pick(0, 2)]
        if not self._grow([(r, len(r.tokens)) for r in batch], publish=True):
            return
        computed = [(r, r.length, [set(held) for held in r.held], r.gave_way) for r in batch]
        self._open_pages(batch, pick)
        for request, length, held, gave_way in computed:
            lengths = self.model.lengths_within(held, request, length)
            self._publish(request, length)
            if self.pool.prefix_cache and request.gave_way == gave_way:
                self._check_prefixes(request, lengths)

    def _open_pages(self, batch: Sequence[Request], pick: Pick) -> None:
        """A page for the next token of those that have filled theirs, as a decode step begins."""
        full = [
            r for r in batch if r.length % self.page_size == 0 and r.length < self.pool.max_length
        ]
        for request in full:
            self._slide(request, request.length)
            self.model.append(request, pick(0, 1))
        self._grow([(r, r.length + 1) for r in full])

    def _check_prefixes(self, request: Request, lengths: Sequence[int]) -> None:
        for num_pages in lengths:
            tokens = request.tokens[: num_pages * self.page_size]
            hit = self.manager.match(request.namespace, tokens)
            assert hit.path.num_pages == num_pages, "let go of before it was published"

    def grow(self, pick: Pick) -> None:
        """Some running requests, each by some tokens, in one batch."""
        batch = [r for r in self.live if pick(0, 2)]
        lengths = [(r, self._next_length(pick, r)) for r in batch]
        self._grow(lengths, publish=bool(pick(0, 1)))

    def chunk(self, pick: Pick) -> None:
        """A step of the server: each of some requests goes on by many tokens. What none of them
        will read later may pass, but for hits that are wanted."""
        self.manager.end_step()
        for request in self.live:
            self.model.end_passing(request)
        batch = [r for r in self.live if pick(0, 2)]
        lengths = [(r, self._next_length(pick, r)) for r in batch]
        wanted = [
            [pick(0, n) for _ in range(pick(0, 2))] if pick(0, 3) else None for _, n in lengths
        ]
        self._grow(lengths, publish=bool(pick(0, 1)), wanted=wanted)

    def decode(self, pick: Pick) -> None:
        """Every running request that has computed all its tokens gets one more."""
        done = [r for r in self.live if r.length == len(r.tokens) < self.pool.max_length]
        for request in done:
            self.model.append(request, pick(0, 1))
        self._grow([(r, r.length + 1) for r in done])

    def answer(self, pick: Pick) -> None:
        """One request that has computed all its tokens gets a few pages of them, one by one."""
        done = [r for r in self.live if r.length == len(r.tokens)]
        if not done:
            return
        request = choose(pick, done)
        for _ in range(pick(1, 4) * self.page_size):
            if request.length == self.pool.max_length:
                break
            self.model.append(request, pick(0, 1))
            if not self._grow([(request, request.length + 1)]):
                break

    def draft(self, pick: Pick) -> None:
        """Room for drafts behind requests that have computed all their tokens, perhaps more than
        there may ever be; then some of each are accepted, once or in several steps."""
        done = [r for r in self.live if r.length == len(r.tokens) and r.prompt_tokens <= r.length]
        batch = [(r, r.length + pick(1, 3 * self.page_size)) for r in done if pick(0, 2)]
        batch = [(r, stop) for r, stop in batch if self.running[r].touched]
        if not self._reserve(batch):
            return
        for request, stop in batch:
            new = self.manager.extend_tail(self.running[request], stop)
            assert len(new) == max(0, -(-stop // self.page_size) - request.num_pages)
            self.model.extend_tail(request, stop)
        for _ in range(pick(1, 3)):
            for request, stop in batch:
                self._accept(
                    request, pick(0, min(stop, self.pool.max_length) - request.length), pick
                )

    def _accept(self, request: Request, count: int, pick: Pick) -> None:
        for _ in range(count):
            self.model.append(request, pick(0, 1))
        request.length = len(request.tokens)
        before = [set(held) for held in request.held]
        self.manager.commit(self.running[request], request.length)
        self.model.end_passing(request)
        self.model.slide(request, request.length)
        self.model.hold_for_others(request, self.kept_for_others(request), before)

    def publish(self, pick: Pick) -> None:
        if self.live:
            request = choose(pick, self.live)
            length = request.length if pick(0, 3) else pick(request.slid, request.length)
            keep = [pick(0, length) for _ in range(pick(0, 2))] if pick(0, 1) else None
            self._publish(request, length, keep)

    def slide(self, pick: Pick) -> None:
        if self.live:
            request = choose(pick, self.live)
            self._slide(request, request.length if pick(0, 3) else pick(0, request.length))

    def wait(self, pick: Pick) -> None:
        """A waiting request says what it is going to hit."""
        namespace, tokens = choose(pick, self.namespaces), self._random_tokens(pick)
        hit = self.manager.match(namespace, tokens)
        self.manager.refresh(hit)
        pages = self.model.histories.pages(namespace, tokens)[: hit.path.num_pages]
        length = len(pages) * self.page_size
        self.model.use(namespace, pages, [length], inside.now(self.manager))
        self.large_pages()

    def finish(self, pick: Pick) -> None:
        if self.live:
            request = choose(pick, self.live)
            self._publish(request, request.length)
            self._release(request)

    def abort(self, pick: Pick) -> None:
        if self.live:
            self._release(choose(pick, self.live))

    def evict(self, pick: Pick) -> None:
        """Free virtual pages on demand."""
        before, places = inside.num_free_ids(self.manager), self.large_pages()
        wanted = pick(1, 8)
        freed = self.manager.evict(wanted)
        assert freed == inside.num_free_ids(self.manager) - before
        self.evicted(places)
        if freed < wanted:
            assert not any(self.model.idle(g) for g in self.model.groups) or not self.exact_order

    def ask_for_room(self, pick: Pick) -> None:
        """`can_serve` for other numbers of pages in each group. What requests keep for others may
        count as room or not."""
        pages = [pick(0, 30) for _ in self.model.groups]
        at_once, at_last = (self.fits(pages, at_last=x) for x in (False, True))
        assert at_once <= self.manager.can_serve(pages) <= at_last
        self._check_given_up(needed=not at_once)

    def ask_for_a_step(self, pick: Pick) -> None:
        """`make_way` for pages of many requests: what is kept for others is room."""
        wanted = pick(0, 30)
        pages = self.demand(wanted, 0)
        at_once, at_last = (self.fits(pages, at_last=x) for x in (False, True))
        assert self.manager.make_way(wanted) == at_last
        self._check_given_up(needed=not at_once)

    def ask_for_a_chunk(self, pick: Pick) -> None:
        """`make_way` for a step of one request."""
        wanted = pick(0, 30)
        pages = self.demand(wanted, 0)
        at_once, at_last = (self.fits(pages, at_last=x) for x in (False, True))
        made = self.manager.make_way(wanted, passes=True)
        assert made >= at_last
        if made > at_last:
            # Where memory is short, all but what the next token reads may pass.
            passing = [0] * len(pages)
            for g, places in self.model.may_pass_ever(wanted).items():
                if inside.stripes(self.manager)[g] > 1:
                    pages[g], passing[g] = pages[g] - places, places
            assert self.pool.policy.passing_pages
            assert self.fits(pages, at_last=True, passing=passing)
        self._check_given_up(needed=not at_once)

    def crowd(self, pick: Pick) -> None:
        """Others begin to wait for memory, or nobody does any more."""
        self.crowded = bool(pick(0, 1))
        if self.crowded and pick(0, 1):
            assert self.manager.let_go_of_answers() == self.model.let_go_of_answers()

    def flush(self, pick: Pick) -> None:
        """Everything ends. Rare, because little is left to find afterwards."""
        if pick(0, 9):
            return
        for request in list(self.live):
            self._release(request)
        self.check()
        self.manager.reset()
        self.model.flush()
        self.forget_places()

    RULES = (
        *["start"] * 4,
        *["start_twins", "evict", "ask_for_room", "ask_for_a_step", "ask_for_a_chunk", "flush"],
        *["chunk"] * 4,
        *["grow", "overlap"] * 3,
        *["decode", "answer", "draft", "publish", "finish"] * 2,
        *["slide", "wait", "abort", "crowd"],
    )

    # -- both sides at once -------------------------------------------------------------------

    def _lock(self, namespace: Hashable, tokens: Tokens) -> Request:
        hit = self.manager.match(namespace, tokens[:-1])
        pages = self.model.histories.pages(namespace, tokens[:-1])
        expected, matched = self.model.hit(pages, self.model.known())
        assert hit.path.num_pages == expected
        request = self.model.lock(namespace, tokens, expected, matched)
        self.running[request] = self.manager.lock(hit)
        if self.pool.prefix_cache:
            assert hit.matched_pages == matched
        return request

    def _slide(self, request: Request, length: int) -> None:
        before = [set(held) for held in request.held]
        self.manager.slide(self.running[request], length)
        self.model.end_passing(request)
        self.model.slide(request, length)
        self.model.hold_for_others(request, self.kept_for_others(request), before)

    def _passing(
        self, batch: Sequence[tuple[Request, int]], wanted: Sequence[Wanted] | None, states: int
    ) -> list[Places]:
        """Of each request's new pages those that are to pass, by group: none unless the pages
        would take what somebody has used, and what is wanted only where the rest does not fit."""
        nothing: list[Places] = [{} for _ in batch]
        if wanted is None or not self.pool.policy.passing_pages:
            return nothing
        several = {g for g, n in enumerate(inside.stripes(self.manager)) if n > 1}
        least, most = (
            [
                {g: places for g, places in self.model.may_pass(r, n, w).items() if g in several}
                for (r, n), w in zip(batch, all_wanted, strict=True)
            ]
            for all_wanted in ([None if w is None else () for w in wanted], wanted)
        )
        if not any(least) or self._takes_nothing_used(self.batch_demand(batch, states)):
            return nothing
        room = self._room_of(batch, most, states)
        return most if self.fits(room[0], at_last=False, passing=room[1]) else least

    def _room_of(
        self, batch: Sequence[tuple[Request, int]], passing: Sequence[Places], states: int
    ) -> tuple[list[int], list[int]]:
        """The new pages of ``batch`` in each group, without those that pass, and those."""
        passed = [sum(len(p.get(g, ())) for p in passing) for g in self.model.groups]
        demand = self.batch_demand(batch, states)
        return [n - m for n, m in zip(demand, passed, strict=True)], passed

    def _takes_nothing_used(self, demand: Sequence[int]) -> bool:
        """Whether pages in each group fit into what is free and large pages that no hit used."""
        manager = self.manager
        room = inside.num_free(manager)
        room += sum(p.is_idle and p.time == 0 for p in places(manager, self.see()))
        for g, count in enumerate(demand):
            per_large = inside.small_per_large(manager)[g]
            holes = inside.num_owned(manager)[g] * per_large - inside.num_held(manager)[g]
            room -= -(-max(0, count * inside.stripes(manager)[g] - holes) // per_large)
        return room >= 0

    def _reserve(
        self, batch: Sequence[tuple[Request, int]], wanted: Sequence[Wanted] | None = None
    ) -> bool:
        """Make room for all of a batch, each with the tokens that it is to have pages for; True
        unless there is none."""
        demands = [
            (self.running[r], self.manager.new_pages(self.running[r], length))
            for r, length in batch
        ]
        for (request, length), (_, pages) in zip(batch, demands, strict=True):
            assert pages == max(0, -(-length // self.page_size) - request.num_pages)
        states = sum(not r.has_state for r, _ in batch)
        self.to_pass = self._passing(batch, wanted, states)
        demand, passing = self._room_of(batch, self.to_pass, states)
        fits_at_once, fits = (self.fits(demand, at_last=x, passing=passing) for x in (False, True))
        before, places = contents(self.manager), self.large_pages()
        # What is outside the tree is not in the cache yet: given up, it is free at once.
        unpublished = any(self._private_for_others(g) for g in self.model.groups)
        free, private = inside.num_free(self.manager), self._num_private()
        cascaded = self.manager.counters.cascaded.total()
        assert self.manager.reserve(demands, wanted) == fits
        self._check_given_up(needed=not fits_at_once)
        if not fits:
            same = contents(self.manager) == before
            assert same or unpublished, "a refused reservation changed something"
            return False
        self.evicted(places)
        cascaded = self.manager.counters.cascaded.total() - cascaded
        gave_way = private - self._num_private()
        self._check_no_waste(sum(demand), free, cascaded + gave_way)
        return True

    def _grow(
        self,
        batch: Sequence[tuple[Request, int]],
        *,
        publish: bool = False,
        wanted: Sequence[Wanted] | None = None,
    ) -> bool:
        """Reserve for all, then extend each; True unless there is no room. Whether publishing is
        to ``publish`` it."""
        if not self._reserve(batch, wanted):
            return False
        starts = [request.length for request, _ in batch]
        decodes = not publish and all(
            self.running[r].touched and n - 1 == r.length == r.num_pages * self.page_size
            for r, n in batch
        )
        if batch and decodes:
            new = self.manager.extend_each([self.running[request] for request, _ in batch])
            assert len(set(new.tolist())) == len(batch)
        else:
            for request, length in batch:
                self.model.end_passing(request)
                is_first = not self.running[request].touched
                new = self.manager.extend(self.running[request], length, publish=publish)
                if is_first:
                    self.used(request, request.tree_pages)
                assert len(new) == max(0, -(-length // self.page_size) - request.num_pages)
        publish = publish and self.pool.prefix_cache
        for request, length in batch:
            self.model.extend(request, length, publish=publish)
        if not (batch and decodes):
            for (request, _), passing in zip(batch, self.to_pass, strict=True):
                self.model.pass_by(request, passing)
        for (request, length), start in zip(batch, starts, strict=True):
            self._save_states(request, start, length)
        return True

    def _save_states(self, request: Request, start: int, length: int) -> None:
        """Room for snapshots of the step, each in all groups of states or in none."""
        counters, places = self.manager.counters, self.large_pages()
        saved, skipped = counters.saved_snapshots, counters.skipped_snapshots
        running = self.running[request]
        prompt, before = request.prompt_tokens, request.answer
        partings = range(self.page_size, length + 1, 3 * self.page_size)
        self.manager.save_states(running, start, length, prompt, partings, crowded=self.crowded)
        self.evicted(places)
        slack = self.pool.policy.prompt_slack_tokens
        allowed = self.model.may_save(request, start, partings, slack)
        end = self.model.answer_end(request, start, self.pool.policy.answer_state_tokens)
        answer = running.answer_page - 1 if running.answer_page else None
        assert answer in (before, end)
        assert not (self.crowded and before is None and answer is not None)
        fresh, moved = self.model.save(request, self.kept_for_others(request), allowed, answer)
        assert counters.saved_snapshots - saved == fresh - moved
        if counters.skipped_snapshots > skipped:
            assert not self.fits(self.demand(0, 1), at_last=False), "skipped although there is room"
        copies = [(n // self.page_size - 1, copy.group) for n, copy in running.take_saves()]
        assert len(copies) == fresh * len(self.model.states)
        running.take_starts()

    def _check_given_up(self, *, needed: bool) -> None:
        """What requests keep for others, or until it is published, goes only for want of room."""
        for request in self.live:
            if request.waits and not self.running[request].waiting_slide_pages:
                assert needed
                self.model.give_way(request)
            kept = self.kept_for_others(request)
            assert needed or kept == request.for_others
            self.model.give_up_for_others(request, kept)

    def _num_private(self) -> int:
        return sum(self.model.num_private(g) for g in self.model.groups)

    def _check_no_waste(self, demand: int, free_before: int, gone_with_it: int) -> None:
        """Where a page of any group is one large page, just what is missing is evicted; only what
        an evicted page made unreachable, and what gave way unpublished, may go beyond that."""
        if self.exact_order and all(s == 1 for s in inside.stripes(self.manager)):
            surplus = inside.num_free(self.manager) - max(free_before, demand)
            assert 0 <= surplus <= gone_with_it

    def _publish(self, request: Request, length: int, keep: Sequence[int] | None = None) -> None:
        tokens = request.tokens[:length]
        before = [set(held) for held in request.held]
        self.manager.publish(self.running[request], request.namespace, tokens, keep)
        if self.pool.prefix_cache:
            self.model.end_passing(request)
            self.model.publish(request, length)
            self.used(request, request.tree_pages)
            self.model.hold_for_others(request, self.kept_for_others(request), before)

    def _release(self, request: Request) -> None:
        self.manager.release(self.running.pop(request))
        self.model.release(request)

    # -- random tokens ------------------------------------------------------------------------

    def _document(self, pick: Pick, number: int) -> Tokens:
        """Documents begin alike: document n leaves document 0 at a random place."""
        tokens = np.zeros(self.pool.max_length, np.int64)
        if number:
            tokens[pick(0, self.pool.max_length // 2) :] = number
        return tokens

    def _random_tokens(self, pick: Pick) -> Tokens:
        """A beginning of a document, half the time with another end."""
        tokens = choose(pick, self.documents)[: pick(1, self.pool.max_length - 1)].copy()
        if pick(0, 1):
            tokens[pick(0, len(tokens) - 1) :] = 50 + pick(0, 3)
        return tokens

    def _next_length(self, pick: Pick, request: Request) -> int:
        if request.length >= len(request.tokens):
            return request.length
        return pick(request.length + 1, len(request.tokens))
