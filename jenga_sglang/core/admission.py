"""Whether a request fits: the arithmetic behind "yes", "not now" and "never".

Everything here only reads the manager's books.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from jenga_sglang.core.ids import ceil_div
from jenga_sglang.core.manager import Manager

# -- what a request takes -------------------------------------------------------------------------


def request_pages(
    manager: Manager, length: int, fresh: int, prefix: int, encoder_pages: int = 0
) -> list[int]:
    """Pages per group that a request may come to hold beyond its pinned ``prefix`` tokens.

    ``length`` is how long it may grow, ``fresh`` the most tokens that one step computes for
    it. A step holds what the history before it needs and everything it computes, drafts behind
    the last token as well; two pages more for the boundaries that fall inside pages, and one for
    every gap between sinks and window. Of recurrent states it is the working state; a snapshot is
    never needed. Pages that only the step reads count as where memory is short (`core.passing`).
    The first ``encoder_pages`` pages are an encoder's: they are taken together, by who reads them.
    """
    memory, page_size = manager.memory, manager.page_size
    encoder_tokens = encoder_pages * page_size
    left = encoder_pages if prefix < encoder_tokens else 0
    fresh = max(0, fresh - max(0, encoder_tokens - prefix))
    length, prefix = max(0, length - encoder_tokens), max(0, prefix - encoder_tokens)
    length, fresh = length + manager.tail_tokens, max(fresh, manager.tail_tokens)
    of_pages = manager.needs.of_pages
    passing = () if encoder_pages else manager.passing.groups
    longest = ceil_div(length, page_size)
    pages = []
    for g, dependency in enumerate(manager.dependencies):
        if g not in memory.row_groups:
            encoder = left if g in memory.encoder_groups else 0
            pages.append(encoder + int(g in memory.state_groups))
            continue
        ranges = max(1, len(dependency.needed(length)))
        peak = dependency.peak_tokens(length)
        held = ceil_div(peak + fresh, page_size) + 1 + ranges
        if fresh > peak and g in passing:
            # The window before the step, and what the step takes, or a tail, of which all stays.
            stays = manager.passing.most_that_stays(g, length)
            new = manager.passing.room(g, ceil_div(fresh, page_size) + 1, stays)
            held = min(held, stays + max(new, ceil_div(manager.tail_tokens, page_size) + 1))
        pinned = sum([stop - start for start, stop in of_pages(g, prefix, 0)]) if prefix else 0
        pages.append(max(0, min(longest, held) - pinned))
    return pages


def step_pages(manager: Manager, pages: int) -> list[int]:
    """Pages per group that ``pages`` new pages of a request that runs already take, or are as much
    room as they take, where memory is short, if a step computes them all."""
    taken = [0] * len(manager.dependencies)
    for g in manager.memory.row_groups:
        taken[g] = pages
    for g in manager.passing.groups:
        taken[g] = manager.passing.most_room(g, pages)
    return taken


def growth_room(manager: Manager) -> list[int]:
    """Pages per group that the running requests could still grow by, together."""
    tail_pages = ceil_div(manager.tail_tokens, manager.page_size)
    room = [0] * manager.memory.num_groups
    for g in manager.memory.row_groups:
        most = manager.needs.most_pages[g] + tail_pages
        growth = 0
        for running in manager.running.values():
            if g in running.groups:
                left = most
                for start, stop in running.held[g]:
                    left -= stop - start
                if left > 0:
                    growth += left
        room[g] = growth
    return room


def tails_to_come(manager: Manager) -> int:
    """Pages that the tails of running requests still lack, together. Of a request that has not
    begun, the tail is among its `request_pages`."""
    if not (tail_tokens := manager.tail_tokens):
        return 0
    begun = [running for running in manager.running.values() if running.touched]
    return sum(manager.new_pages(running, running.length + tail_tokens) for running in begun)


# -- ever -----------------------------------------------------------------------------------------


def fits_alone(manager: Manager, length: int, fresh: int, encoder_pages: int = 0) -> bool:
    """Whether a request of ``length`` tokens fits into an empty pool when its prompt is
    computed ``fresh`` tokens at a time.

    A large page is kept for every stripe of a group that shares its large pages among pages and
    lets go of some: what stays may lie scattered.
    """
    if length > manager.max_length:
        return False
    memory = manager.memory
    pages = request_pages(manager, length, fresh, 0, encoder_pages)
    scattered = sum(
        memory.stripes[g]
        for g in manager.needs.forgetful
        if g in memory.row_groups and memory.large.small_per_large[g] > 1
    )
    return _num_large(manager, pages) + scattered <= memory.large.num_large


def longest_request(manager: Manager, fresh: int, encoder_pages: int = 0) -> int:
    """The longest request, in tokens, that `fits_alone`; at most the manager's ``max_length``."""
    return _most(
        manager.max_length, lambda length: fits_alone(manager, length, fresh, encoder_pages)
    )


def longest_prompt(manager: Manager, step_tokens: int, encoder_pages: int = 0) -> int:
    """The longest prompt, in tokens, that fits alone with one token of output where a step computes
    at most ``step_tokens`` of it."""
    return _most(
        manager.max_length - 1,
        lambda prompt: fits_alone(manager, prompt + 1, min(prompt, step_tokens), encoder_pages),
    )


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The most, up to ``limit``, that ``fits``, where less always does; 0 where nothing does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def fleeting_share(manager: Manager, tokens: int) -> float:
    """Share of the pool that a step of ``tokens`` takes, where memory is short, in groups of rows
    that will forget them."""
    pages = step_pages(manager, ceil_div(tokens, manager.page_size))
    for g in manager.needs.groups:
        if g not in manager.needs.forgetful:
            pages[g] = 0
    return sum(in_large_pages(manager, pages)) / manager.memory.large.num_large


# -- now ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighing:
    """What a request asks for against what there is, in large pages.

    ``asked[g]`` are the large pages that group g needs for it; ``promised`` those that running
    requests may still come to need; ``available`` those that are free or hold only cached pages.
    """

    asked: tuple[int, ...]
    promised: int
    available: int

    @property
    def missing(self) -> int:
        """Large pages short; 0 when the request fits."""
        return max(0, self.promised + sum(self.asked) - self.available)


def weigh(manager: Manager, promised: Sequence[int], pages: Sequence[int]) -> Weighing:
    """Weigh ``pages`` new pages per group, beside ``promised`` pages per group.

    Nothing is missing exactly when `Manager.can_serve` says that both together fit.
    """
    books = manager.memory.large
    before = _large_beside_used(manager, promised)
    both = _large_beside_used(manager, [a + b for a, b in zip(promised, pages, strict=True)])
    return Weighing(
        asked=tuple([b - a for a, b in zip(before, both, strict=True)]),
        promised=sum(before),
        available=books.available,
    )


def fits_free(manager: Manager, pages: Sequence[int]) -> bool:
    """Whether ``pages`` new pages per group fit into free large pages, nothing evicted."""
    return _num_large(manager, pages) <= manager.memory.large.num_free


def whole_tokens_left(manager: Manager, pages: Sequence[int]) -> int:
    """Tokens that fit beside ``pages`` pages per group if every group must hold them all."""
    geometry, books = manager.geometry, manager.memory.large
    page_bytes = [g.page_bytes for g in geometry.groups]
    all_rows = sum(page_bytes[g] for g in manager.memory.row_groups)
    usable = (books.available) * geometry.large_page_bytes
    small_page_bytes = [g.small_page_bytes for g in geometry.groups]
    usable += sum(n * b for n, b in zip(books.usable, small_page_bytes, strict=True))
    usable -= sum(n * b for n, b in zip(pages, page_bytes, strict=True))
    return usable // all_rows * manager.page_size if all_rows else manager.max_length


def whole_tokens(manager: Manager, large_pages: int) -> int:
    """Tokens for which ``large_pages`` of any tier have room if every group must hold them all."""
    groups = manager.geometry.groups
    all_rows = sum(groups[g].page_bytes for g in manager.memory.row_groups)
    pages = large_pages * manager.geometry.large_page_bytes // max(1, all_rows)
    return pages * manager.page_size


# -- in large pages -------------------------------------------------------------------------------


def in_large_pages(manager: Manager, pages: Sequence[int]) -> list[float]:
    """``pages`` pages per group in large pages, and parts of them, of each group."""
    per_large = manager.memory.large.small_per_large
    return [n * s / k for n, s, k in zip(pages, manager.memory.stripes, per_large, strict=True)]


def _num_large(manager: Manager, pages: Sequence[int]) -> int:
    """Large pages that ``pages`` pages per group take, none of them shared."""
    return sum(ceil(large) for large in in_large_pages(manager, pages))


def _large_beside_used(manager: Manager, pages: Sequence[int]) -> list[int]:
    """Large pages that each group would have to take, its own usable pages spent first."""
    stripes = manager.memory.stripes
    return manager.memory.large.large_of_each([n * s for n, s in zip(pages, stripes, strict=True)])
