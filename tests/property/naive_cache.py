"""What a manager must hold, in plain sets, written without looking at how it does it.

It knows dependencies and nothing else of the core. A page of a history is named by the number of
the history that it ends (`core_inspector.Histories`), so equal tokens are equal pages whoever
computed them. Which cached pages an eviction takes is for the manager to choose: the model is
told, and says whether that was allowed.
"""

from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from core_inspector import Histories

from jenga_sglang.core.books.tree import Encoded
from jenga_sglang.core.dependency import Dependency

Page = int  # a history, by number
Entry = tuple[int, Page]  # a page in a group
Uses = dict[Entry, int]  # logical times


@dataclass(frozen=True)
class LargePage:
    """Who lies in a large page of a group. ``is_idle``: cached pages and nobody else. ``deepest``
    are the least and the greatest place of its last tenant since it has had its ``time``."""

    group: int
    tenants: frozenset[Page]
    is_idle: bool
    time: int
    deepest: tuple[int, int]

    @property
    def entries(self) -> set[Entry]:
        return {(self.group, page) for page in self.tenants}


@dataclass(eq=False)
class Request:
    """A running request. Its first ``tree_pages`` pages are shared, the others its own."""

    namespace: Hashable
    tokens: np.ndarray  # computed or still to compute
    pages: list[Page]  # the whole pages of ``tokens``
    length: int  # computed tokens
    num_pages: int
    tree_pages: int
    held: list[set[int]]  # places in the row that each group must keep
    for_others: list[set[int]]  # places that it keeps for later requests, as long as there is room
    names: set[Page]  # tree pages that it keeps known, held or not
    slid: int
    prompt_tokens: int
    matched: int  # pages known when it was locked
    has_state: bool = False  # a working state of its own in every group of states
    answer: int | None = None  # of ``for_others``, the place that moves along with the answer
    to_publish: int = 0  # whole pages that are computed, and still to be published
    gave_way: int = 0  # how often what waited to be published went for want of room
    # Places in a group that the last step alone reads, all stripes from one small page.
    passing: dict[int, set[int]] = field(default_factory=dict)
    waits: int = 0  # whole pages to which the windows slide when it has come; 0 is nowhere


def encoder_tokens(namespace: Hashable) -> int:
    """How many of the first tokens of the histories in ``namespace`` an encoder made."""
    return namespace.tokens if isinstance(namespace, Encoded) else 0


@cache
def pages_needed(dependency: Dependency, length: int, page_size: int) -> Set[int]:
    ranges = dependency.needed(length)
    return frozenset(t // page_size for r in ranges for t in range(r.start, r.stop))


@dataclass(eq=False)
class NaiveCache:
    dependencies: Sequence[Dependency]
    histories: Histories
    max_length: int
    states: Set[int] = frozenset()  # groups whose page holds a state after its last token
    requests: list[Request] = field(default_factory=list)
    cached: list[set[Page]] = field(default_factory=list)  # in the tree, of each group

    used_at: Uses = field(default_factory=dict)  # cached pages that were needed since they came

    def __post_init__(self) -> None:
        self.cached = [set() for _ in self.dependencies]
        self._permanent: dict[tuple[int, Hashable], set[int]] = {}

    @property
    def page_size(self) -> int:
        return self.histories.page_size

    @property
    def groups(self) -> range:
        return range(len(self.dependencies))

    def dependency(self, group: int, namespace: Hashable) -> Dependency:
        return self.dependencies[group].after_encoder(encoder_tokens(namespace))

    def needed(self, group: int, length: int, namespace: Hashable) -> Set[int]:
        """Places of the pages that ``group`` needs of a history of ``length`` tokens."""
        return pages_needed(self.dependency(group, namespace), length, self.page_size)

    def needed_for_ever(self, group: int, namespace: Hashable) -> set[int]:
        """Places that every history needs that is long enough to have them."""
        key = (group, namespace)
        if key not in self._permanent:
            # With what an encoder made in front of it, as SGLang's limit of a prompt.
            permanent = set(range(self.max_length // self.page_size))
            for length in range(1, self.max_length + 1):
                whole = range(length // self.page_size)
                permanent -= set(whole) - self.needed(group, length, namespace)
            self._permanent[key] = set() if group in self.states else permanent
        return self._permanent[key]

    def has_page(self, group: int, place: int, namespace: Hashable) -> bool:
        """Whether a computed page at ``place`` has rows of ``group``."""
        encoder = place < encoder_tokens(namespace) // self.page_size
        return group not in self.states and encoder == self.dependencies[group].reads_encoder

    # -- what must be true --------------------------------------------------------------------

    def known(self) -> set[Page]:
        """Pages of histories that something is left of: any cached or named page and its
        prefix."""
        known: set[Page] = set()
        for page in self.present():
            while page and page not in known:
                known.add(page)
                page = self.histories.parent[page]
        return known

    def present(self) -> set[Page]:
        """Pages that something is left of themselves."""
        return set().union(*self.cached, *(r.names for r in self.requests))

    def hit(self, pages: Sequence[Page], known: set[Page]) -> tuple[int, int]:
        """Pages of the longest hit, tried from the longest down, and pages known at all."""
        matched = sum(page in known for page in pages)
        for num_pages in range(matched, 0, -1):
            if all(self.accepts(g, pages, num_pages) for g in self.groups):
                return num_pages, matched
        return 0, matched

    def lengths_within(
        self, places: Sequence[Set[int]], request: Request, length: int
    ) -> list[int]:
        """Numbers of whole pages of the request's first ``length`` tokens that every group could
        continue from with pages at ``places``."""
        return [
            n
            for n in range(1, length // self.page_size + 1)
            if all(
                self.needed(g, n * self.page_size, request.namespace) <= places[g]
                and self.is_whole(g, request.namespace, n * self.page_size)
                for g in self.groups
            )
        ]

    def is_whole(self, group: int, namespace: Hashable, length: int) -> bool:
        return self.dependency(group, namespace).whole(length) == length

    def accepts(self, group: int, pages: Sequence[Page], num_pages: int) -> bool:
        """Whether ``group`` can continue from the first ``num_pages`` of ``pages``."""
        namespace, length = self.histories.namespace[pages[0]], num_pages * self.page_size
        if not self.is_whole(group, namespace, length):
            return False
        needed = self.needed(group, length, namespace)
        return all(pages[place] in self.cached[group] for place in needed)

    def pins(self, group: int, *, for_others: bool = True) -> dict[Page, int]:
        """How many requests hold each tree page, for themselves or for others as well: for a
        publishing to come, too."""
        pins: dict[Page, int] = {}
        for request in self.requests:
            also = request.for_others[group] if for_others else set()
            own = request.held[group] if for_others else self.kept_for_good(group, request)
            for place in [*own, *also]:
                if place < request.tree_pages:
                    page = request.pages[place]
                    pins[page] = pins.get(page, 0) + 1
        return pins

    def num_private(self, group: int) -> int:
        """Pages and states that requests hold outside the tree."""
        working = sum(r.has_state for r in self.requests) if group in self.states else 0
        return working + sum(len(self.private(group, r)) for r in self.requests)

    def private(self, group: int, request: Request) -> set[int]:
        """Places outside the tree for which the request has a page in ``group``."""
        saved = request.for_others[group] if group in self.states else set()
        return {place for place in request.held[group] | saved if place >= request.tree_pages}

    def kept_for_good(self, group: int, request: Request) -> set[int]:
        """Places that the request holds also when nothing waits to be published any more."""
        if not request.waits:
            return request.held[group]
        length = request.waits * self.page_size
        kept = self.needed(group, length, request.namespace)
        return request.held[group] & (kept | set(range(request.waits, request.num_pages)))

    def idle(self, group: int) -> set[Page]:
        """Tree pages that may be evicted."""
        return self.cached[group] - set(self.pins(group))

    # -- what happens -------------------------------------------------------------------------

    def lock(
        self, namespace: Hashable, tokens: np.ndarray, num_pages: int, matched: int
    ) -> Request:
        pages = self.histories.pages(namespace, tokens)
        length = num_pages * self.page_size
        held = [set(self.needed(g, length, namespace)) for g in self.groups]
        request = Request(
            namespace=namespace,
            tokens=tokens,
            pages=pages,
            length=length,
            num_pages=num_pages,
            tree_pages=num_pages,
            held=held,
            for_others=[set() for _ in self.groups],
            names=set(pages[:num_pages]) & self.present(),
            slid=length,
            prompt_tokens=len(tokens),
            matched=matched,
        )
        self.requests.append(request)
        return request

    def extend(self, request: Request, length: int, *, publish: bool) -> None:
        if publish:
            request.to_publish = length // self.page_size
        request.has_state = bool(self.states)
        self.extend_tail(request, length)
        request.length = max(request.length, length)

    def extend_tail(self, request: Request, stop: int) -> None:
        """Pages up to ``stop`` tokens, which are not there for good."""
        num_pages = max(request.num_pages, -(-stop // self.page_size))
        for group, held in enumerate(request.held):
            new = range(request.num_pages, num_pages)
            held.update(p for p in new if self.has_page(group, p, request.namespace))
        request.num_pages = num_pages

    def may_pass(
        self, request: Request, length: int, lengths: Iterable[int] | None
    ) -> dict[int, set[int]]:
        """Places of the new pages up to ``length`` tokens, by group, that no history needs which
        ends in the last of them or later, and no hit of ``lengths``; nothing where that is None."""
        last = -(-length // self.page_size) - 1
        new = set(range(request.num_pages, last))
        begun = encoder_tokens(request.namespace) <= request.num_pages * self.page_size
        found = {}
        for group in self.groups if begun and lengths is not None else ():
            if group in self.states or self.dependencies[group].reads_encoder:
                continue
            kept = [last * self.page_size]
            kept += [n // self.page_size * self.page_size for n in lengths or ()]
            found[group] = new.difference(*(self.needed(group, n, request.namespace) for n in kept))
        return {group: places for group, places in found.items() if places}

    def may_pass_ever(self, new: int) -> dict[int, int]:
        """Of ``new`` pages of some history, how many at most no history needs that goes on."""
        found = {}
        for group in self.groups:
            if self.has_page(group, 0, None):
                whole = range(new, self.max_length // self.page_size + 1)
                needed = (self.needed(group, n * self.page_size, None) for n in whole)
                stays = [
                    len(p & set(range(n - new, n))) for n, p in zip(whole, needed, strict=True)
                ]
                found[group] = max(0, new - min(stays, default=0))
        return found

    def pass_by(self, request: Request, passing: dict[int, set[int]]) -> None:
        """Of the pages that ``request`` has just got, these are not its own."""
        request.passing = passing
        for group, places in passing.items():
            request.held[group] -= places

    def end_passing(self, request: Request) -> None:
        request.passing = {}

    def num_passing(self, group: int) -> int:
        return sum(len(r.passing.get(group, ())) for r in self.requests)

    def may_save(
        self, request: Request, start: int, partings: Iterable[int], slack: int
    ) -> set[int]:
        """Places that end where a snapshot may be worth it, in the step from ``start`` tokens
        to now; the branch point and guesses, at doublings of ``slack`` before the end of the
        prompt, are some of them only where that is the policy."""
        wanted = {request.prompt_tokens - 1, request.matched * self.page_size, *partings}
        wanted |= {request.prompt_tokens - (max(1, slack) << n) for n in range(16)}
        ends = {n // self.page_size * self.page_size for n in wanted}
        return {
            n // self.page_size - 1
            for n in ends
            if start < n <= request.length and n // self.page_size > request.tree_pages
        }

    def answer_end(self, request: Request, start: int, interval: int) -> int | None:
        """The place where the step from ``start`` tokens to now may leave the snapshot that
        moves along with the answer, if any."""
        length = request.length // interval * interval if interval else 0
        place = length // self.page_size - 1
        wanted = length > max(start, request.prompt_tokens) and place >= request.tree_pages
        return place if wanted else None

    def save(
        self, request: Request, places: list[set[int]], allowed: set[int], answer: int | None
    ) -> tuple[int, int]:
        """The manager has snapshots at ``places`` now, and what moves along with the answer at
        ``answer``. How many are new or have moved, and how many have moved."""
        old, request.answer = request.answer, answer
        moved = {old} - {answer, None}
        fresh = [places[g] - request.for_others[g] for g in self.groups]
        for group in self.groups:
            left = request.for_others[group] - places[group]
            if group in self.states:
                assert left == moved, "a snapshot went, and did not move"
                assert fresh[group] <= allowed | ({answer} - {old})
                assert answer is None or answer in places[group]
            else:
                assert not left and not fresh[group]
        request.for_others = places
        numbers = {len(fresh[g]) for g in self.states}
        assert len(numbers) <= 1, "a snapshot of some groups only"
        return max(numbers, default=0), len(moved)

    def let_go_of_answers(self) -> bool:
        following = [r for r in self.requests if r.answer is not None]
        for request in following:
            for group in self.states:
                request.for_others[group].remove(request.answer)
            request.answer = None
        return bool(following)

    def append(self, request: Request, token: int) -> None:
        """One more token to compute."""
        request.tokens = np.append(request.tokens, token)
        request.pages = self.histories.pages(request.namespace, request.tokens)

    def publish(self, request: Request, length: int) -> None:
        whole = length // self.page_size
        for place in range(request.tree_pages, whole):
            request.names.add(request.pages[place])
            for group in self.groups:
                if place in self.private(group, request):
                    self.cached[group].add(request.pages[place])
        first, request.tree_pages = request.tree_pages, max(request.tree_pages, whole)
        for group in self.states:
            request.for_others[group] -= set(range(first, whole))
        if request.answer is not None and request.answer < whole:
            request.answer = None
        self.slide(request, max(length, request.waits * self.page_size))

    def slide(self, request: Request, length: int) -> None:
        """Nothing goes that is to be published, but for who slides on without."""
        whole = length // self.page_size
        unpublished = request.to_publish > request.tree_pages < whole
        if unpublished and not 0 < request.waits < whole:
            request.waits = whole
            self._let_go(request, request.tree_pages * self.page_size)
        else:
            if whole >= request.waits:
                request.waits = 0
            self._let_go(request, length)

    def _let_go(self, request: Request, length: int) -> None:
        whole = length // self.page_size
        if whole > max(request.tree_pages, request.slid // self.page_size):
            request.to_publish = 0
        request.slid = max(request.slid, length)
        for group, held in enumerate(request.held):
            kept = self.needed(group, whole * self.page_size, request.namespace)
            held &= kept | set(range(whole, request.num_pages))

    def give_way(self, request: Request) -> None:
        """For want of room nothing waits to be published any more."""
        length, request.waits = request.waits * self.page_size, 0
        request.gave_way += 1
        self._let_go(request, length)

    def hold_for_others(
        self, request: Request, places: list[set[int]], held: list[set[int]]
    ) -> None:
        """The manager chose ``places``: only of what the request ``held`` itself until now."""
        for group, chosen in enumerate(places):
            offered = request.for_others[group] | (held[group] - request.held[group])
            assert chosen <= offered, "held for others without having held it before"
            assert all(place < request.tree_pages for place in chosen) or group in self.states
            request.for_others[group] = chosen

    def give_up_for_others(self, request: Request, places: list[set[int]]) -> None:
        """For want of room the manager let go of all that this request kept for others, or of
        nothing."""
        nothing = [set[int]() for _ in self.groups]
        assert places in (request.for_others, nothing)
        request.for_others = places
        if places == nothing:
            request.answer = None

    def release(self, request: Request) -> None:
        self.requests.remove(request)

    def flush(self) -> None:
        assert not self.requests
        self.used_at.clear()
        self.cached = [set() for _ in self.dependencies]

    # -- eviction -----------------------------------------------------------------------------

    def evict(
        self, left: Sequence[set[Page]], large_pages: Sequence[LargePage] | None, *, alone: bool
    ) -> None:
        """Take over what the manager has left; complain if it had no right to take the rest.

        ``large_pages`` are those before, None where a policy has another order: none goes while one
        stays that is older, or as old with its deepest tenant further from the start. Where pages
        are ``alone`` in theirs, what falls with others is no younger than they are.
        """
        gone = {(g, p) for g in self.groups for p in self.cached[g] - left[g]}
        for group in self.groups:
            assert left[group] <= self.cached[group], f"group {group}: pages out of nowhere"
            taken = self.cached[group] - left[group]
            assert not taken & set(self.pins(group)), f"group {group}: a used page was evicted"
        self.cached = [set(pages) for pages in left]
        if gone and large_pages is not None:
            idle = [large for large in large_pages if large.is_idle]
            went = [large for large in idle if large.entries <= gone]
            chosen = went if alone else [x for x in went if not self._fell(x, gone)]
            self._assert_oldest(chosen, [x for x in idle if not x.entries & gone])
        self.assert_reachable()
        there = {(g, p) for g in self.groups for p in self.cached[g]}
        self.used_at = {entry: now for entry, now in self.used_at.items() if entry in there}

    def _assert_oldest(self, chosen: Sequence[LargePage], spared: Sequence[LargePage]) -> None:
        if chosen and spared:
            youngest = max((x.time, -x.deepest[1]) for x in chosen)
            oldest = min((x.time, -x.deepest[0]) for x in spared)
            assert youngest <= oldest, "an older page stays, or a longer prefix"

    def _fell(self, large: LargePage, gone: set[Entry]) -> bool:
        """Whether all in ``large`` may have gone because something that every longer history needs
        went: above it, or beside it in another group."""
        return all(self._lost_above(large.group, page, gone) for page in large.tenants)

    def _lost_above(self, group: int, page: Page, gone: set[Entry]) -> bool:
        above, namespace = page, self.histories.namespace[page]
        while above:
            place = self.histories.depth[above]
            for g in self.groups:
                entry = (g, above)
                needed = place in self.needed_for_ever(g, namespace)
                if needed and entry in gone and entry != (group, page):
                    return True
            above = self.histories.parent[above]
        return False

    # -- the time of a last use -----------------------------------------------------------------

    def use(
        self, namespace: Hashable, pages: Sequence[Page], lengths: Sequence[int], now: int
    ) -> None:
        """What hits of ``lengths`` tokens and every longer history need of ``pages``, all shared,
        is used ``now``, in every group that has it."""
        for group in self.groups:
            needed = set(self.needed_for_ever(group, namespace))
            for length in lengths:
                whole = length // self.page_size * self.page_size
                needed |= self.needed(group, whole, namespace)
            for place in needed & set(range(len(pages))):
                if pages[place] in self.cached[group]:
                    self.used_at[group, pages[place]] = now

    def latest_use(self, group: int, pages: Set[Page]) -> int:
        return max((self.used_at.get((group, page), 0) for page in pages), default=0)

    def assert_reachable(self) -> None:
        """No page is kept that no hit can ever need again.

        A page is within reach when every page above it that a group needs for ever is there.
        """
        lost: dict[Page, bool] = {0: False}
        for page in sorted(self.known()):
            place, namespace = self.histories.depth[page], self.histories.namespace[page]
            missing = any(
                place in self.needed_for_ever(g, namespace) and page not in self.cached[g]
                for g in self.groups
            )
            lost[page] = missing or lost[self.histories.parent[page]]
        kept = [(g, p) for g in self.groups for p in self.cached[g] if lost[p]]
        assert not kept, f"out of reach but kept: {kept}"
