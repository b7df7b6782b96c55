"""What a manager must hold, in plain sets, written without looking at how it does it.

It knows dependencies and nothing else of the core. A page of a history is named by the number of
the history that it ends (`core_inspector.Histories`), so equal tokens are equal pages whoever
computed them. Which cached pages an eviction takes is for the manager to choose: the model is
told, and says whether that was allowed.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from core_inspector import Histories

from jenga_sglang.core.dependency import Dependency

Page = int  # a history, by number


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
    names: set[Page]  # tree pages that it keeps known, held or not
    slid: int
    touched: bool = False


@dataclass(eq=False)
class NaiveCache:
    dependencies: Sequence[Dependency]
    histories: Histories
    requests: list[Request] = field(default_factory=list)
    cached: list[set[Page]] = field(default_factory=list)  # in the tree, of each group
    time: dict[tuple[int, Page], int] = field(default_factory=dict)
    now: int = 0

    def __post_init__(self) -> None:
        self.cached = [set() for _ in self.dependencies]

    @property
    def page_size(self) -> int:
        return self.histories.page_size

    @property
    def groups(self) -> range:
        return range(len(self.dependencies))

    def needed(self, group: int, length: int) -> set[int]:
        """Places of the pages that ``group`` needs of a history of ``length`` tokens."""
        ranges = self.dependencies[group].needed(length)
        return {t // self.page_size for r in ranges for t in range(r.start, r.stop)}

    # -- what must be true --------------------------------------------------------------------

    def known(self) -> set[Page]:
        """Pages of histories that something is left of: any cached or named page and its
        prefix."""
        known: set[Page] = set()
        for page in set().union(*self.cached, *(r.names for r in self.requests)):
            while page and page not in known:
                known.add(page)
                page = self.histories.parent[page]
        return known

    def hit(self, pages: Sequence[Page], known: set[Page]) -> tuple[int, int]:
        """Pages of the longest hit, tried from the longest down, and pages known at all."""
        matched = sum(page in known for page in pages)
        for num_pages in range(matched, 0, -1):
            if all(self.accepts(g, pages, num_pages) for g in self.groups):
                return num_pages, matched
        return 0, matched

    def accepts(self, group: int, pages: Sequence[Page], num_pages: int) -> bool:
        """Whether ``group`` can continue from the first ``num_pages`` of ``pages``."""
        needed = self.needed(group, num_pages * self.page_size)
        return all(pages[place] in self.cached[group] for place in needed)

    def pins(self, group: int) -> dict[Page, int]:
        """How many requests hold each tree page."""
        pins: dict[Page, int] = {}
        for request in self.requests:
            for place in request.held[group]:
                if place < request.tree_pages:
                    page = request.pages[place]
                    pins[page] = pins.get(page, 0) + 1
        return pins

    def num_private(self, group: int) -> int:
        """Pages that requests hold outside the tree."""
        return sum(place >= r.tree_pages for r in self.requests for place in r.held[group])

    def idle(self, group: int) -> set[Page]:
        """Tree pages that may be evicted."""
        return self.cached[group] - set(self.pins(group))

    # -- what happens -------------------------------------------------------------------------

    def lock(self, namespace: Hashable, tokens: np.ndarray, num_pages: int) -> Request:
        pages = self.histories.pages(namespace, tokens)
        length = num_pages * self.page_size
        held = [self.needed(g, length) for g in self.groups]
        present = set().union(*self.cached, *(r.names for r in self.requests))
        names = set(pages[:num_pages]) & present
        request = Request(
            namespace, tokens, pages, length, num_pages, num_pages, held, names, length
        )
        self.requests.append(request)
        return request

    def extend(self, request: Request, length: int) -> None:
        if not request.touched:
            request.touched = True
            self._touch(request)
        num_pages = max(request.num_pages, -(-length // self.page_size))
        for held in request.held:
            held.update(range(request.num_pages, num_pages))
        request.num_pages = num_pages
        request.length = max(request.length, length)

    def append(self, request: Request, token: int) -> None:
        """One more token to compute."""
        request.tokens = np.append(request.tokens, token)
        request.pages = self.histories.pages(request.namespace, request.tokens)

    def checkpoint(self, request: Request, length: int) -> None:
        whole = length // self.page_size
        for place in range(request.tree_pages, whole):
            request.names.add(request.pages[place])
            for group, held in enumerate(request.held):
                if place in held:
                    self.cached[group].add(request.pages[place])
        request.tree_pages = max(request.tree_pages, whole)
        self.slide(request, length)
        self._touch(request)

    def slide(self, request: Request, length: int) -> None:
        whole = length // self.page_size
        for group, held in enumerate(request.held):
            kept = self.needed(group, whole * self.page_size)
            held &= kept | set(range(whole, request.num_pages))
        request.slid = max(request.slid, length)

    def release(self, request: Request) -> None:
        self.requests.remove(request)

    def flush(self) -> None:
        assert not self.requests
        self.__post_init__()
        self.time.clear()
        self.now = 0

    def _touch(self, request: Request) -> None:
        self.now += 1
        for group in self.groups:
            for place in self.needed(group, request.tree_pages * self.page_size):
                self.time[group, request.pages[place]] = self.now

    # -- eviction -----------------------------------------------------------------------------

    def evict(self, left: Sequence[set[Page]], *, exact_order: bool) -> None:
        """Take over what the manager has left; complain if it had no right to take the rest.

        ``exact_order`` says that every page could go alone, so no page may go while one that is
        older, or as old and further from the start of its history, stays.
        """
        gone = [(g, p) for g in self.groups for p in self.cached[g] - left[g]]
        for group in self.groups:
            assert left[group] <= self.cached[group], f"group {group}: pages out of nowhere"
            taken = self.cached[group] - left[group]
            assert not taken & set(self.pins(group)), f"group {group}: a used page was evicted"
        self.cached = [set(pages) for pages in left]
        stay = [(g, p) for g in self.groups for p in self.idle(g)]
        if exact_order and gone and stay:
            youngest_gone, oldest_stay = max(map(self._age, gone)), min(map(self._age, stay))
            assert youngest_gone <= oldest_stay, "an older page stays, or a longer prefix"
        for group, page in gone:
            self.time.pop((group, page), None)
        self.assert_reachable()

    def _age(self, entry: tuple[int, Page]) -> tuple[int, int]:
        """Sorts what must go first to the front."""
        return self.time.get(entry, 0), -self.histories.depth[entry[1]]

    def assert_reachable(self) -> None:
        """No page is kept that no hit can ever need again.

        A page is within reach when every page above it that a group needs for ever is there.
        """
        lost: dict[Page, bool] = {0: False}
        for page in sorted(self.known()):
            needed_for_ever = [g for g in self.groups if self._is_permanent(g, page)]
            missing = any(page not in self.cached[g] for g in needed_for_ever)
            lost[page] = missing or lost[self.histories.parent[page]]
        kept = [(g, p) for g in self.groups for p in self.cached[g] if lost[p]]
        assert not kept, f"out of reach but kept: {kept}"

    def _is_permanent(self, group: int, page: Page) -> bool:
        return self.histories.depth[page] in self.permanent[group]

    @property
    def permanent(self) -> list[set[int]]:
        return [self.needed(g, self.max_length) for g in self.groups]

    max_length: int = 0


Pick = Callable[[int, int], int]
