"""What the waiting queue says about the future: the order of eviction, and who is worth what."""

import random
from collections.abc import Hashable

import core_inspector as inside
import numpy as np
import pytest
from core_builders import (
    begin,
    evict_all,
    hit_tokens,
    make_geometry,
    make_tiered,
    serve,
    tokens,
)

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.lookahead import Lookahead
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.prices import Prices, Rate
from jenga_sglang.core.tiered_manager import TieredManager

# Three documents of twelve tokens, a token a page.
A, B, C = (tokens(range(first, first + 12)) for first in (100, 200, 300))


class Queue:
    """Waiting requests by id, and the lookahead that reads them."""

    def __init__(self, manager: Manager) -> None:
        self.lookahead = Lookahead(manager)
        self.reads = 0

    def look(self, **waiting: Tokens) -> None:
        histories = list(waiting.values())

        def read(index: int) -> tuple[Hashable, Tokens]:
            self.reads += 1
            return None, histories[index]

        self.lookahead.look(list(waiting), read)


def make(num_large: int = 80, *, max_requests: int = 8, **policy: int) -> Manager:
    geometry = make_geometry([Full()], num_large)
    policies = CachePolicy(**policy)
    return Manager(geometry, max_requests=max_requests, max_length=1000, policy=policies)


def run(manager: Manager, document: Tokens | None = None, *, own: int) -> None:
    """One more request runs, with four tokens behind a ``document`` that nobody else has."""
    history = tokens(*([] if document is None else [document]), range(4 * own, 4 * own + 4))
    running = begin(manager, history)
    manager.publish(running, None, history)


def test_what_is_hit_soonest_is_evicted_last_and_what_nobody_waits_for_first() -> None:
    manager = make()
    queue = Queue(manager)
    for document in (B, A, C):  # C was used last
        serve(manager, document)
    queue.look(first=tokens(A, 1), second=tokens(B, 1))
    manager.evict(12)
    assert [hit_tokens(manager, d) for d in (A, B, C)] == [12, 12, 0]
    manager.evict(12)
    assert [hit_tokens(manager, d) for d in (A, B, C)] == [12, 0, 0]


def test_the_first_to_ask_for_a_prefix_stands_for_all_and_adds_only_its_own() -> None:
    manager = make()
    queue = Queue(manager)
    longer = tokens(A, range(400, 404))
    serve(manager, A)
    serve(manager, longer)
    queue.look(first=tokens(A, 1), again=tokens(A, 2), beyond=tokens(longer, 1), new=C)
    found = [(w.position, w.saved_tokens, w.large_pages) for w in queue.lookahead.wanted]
    assert found == [(1, 12, 12.0), (3, 4, 4.0)]


def test_what_a_running_request_holds_is_not_there_to_be_evicted() -> None:
    manager = make()
    queue = Queue(manager)
    serve(manager, A)
    running = manager.lock(manager.match(None, A[:8]))
    queue.look(first=tokens(A, 1))
    assert [w.large_pages for w in queue.lookahead.wanted] == [4.0]
    manager.release(running)


def test_a_prefix_of_which_nothing_could_be_evicted_is_not_wanted() -> None:
    manager = make()
    queue = Queue(manager)
    for document in (A, B):
        serve(manager, document)
    running = manager.lock(manager.match(None, A))
    queue.look(first=tokens(A, 1), second=tokens(B, 1))
    assert [(w.position, w.large_pages) for w in queue.lookahead.wanted] == [(2, 12.0)]
    manager.release(running)


def test_a_window_counts_only_what_a_hit_needs_of_it() -> None:
    geometry = make_geometry([Full(), SlidingWindow(3)], 80)
    manager = Manager(geometry, max_requests=8, max_length=1000)
    queue = Queue(manager)
    serve(manager, A)
    queue.look(first=tokens(A, 1))
    per_large = inside.small_per_large(manager)
    (wanted,) = queue.lookahead.wanted
    assert wanted.large_pages == pytest.approx(12 / per_large[0] + 2 / per_large[1])


def test_the_queue_is_read_again_only_when_something_was_used_or_the_tree_has_changed() -> None:
    manager = make()
    queue = Queue(manager)
    serve(manager, A)
    waiting = {"first": tokens(A, 1), "second": tokens(B, 1)}
    queue.look(**waiting)
    assert queue.reads == 2
    queue.look(**waiting)
    assert queue.reads == 2
    serve(manager, B)  # hangs below the root, where the second request's match ended
    queue.look(**waiting)
    assert queue.reads == 3
    assert len(queue.lookahead.wanted) == 2


def test_when_nobody_waits_nothing_is_wanted() -> None:
    manager = make()
    queue = Queue(manager)
    serve(manager, A)
    queue.look(first=tokens(A, 1))
    assert queue.lookahead.wanted
    queue.look()
    assert not queue.lookahead.wanted


def test_a_stale_match_is_found_again_after_its_node_has_gone() -> None:
    manager = make()
    queue = Queue(manager)
    serve(manager, A)
    queue.look(first=tokens(A, 1))
    manager.evict(12)
    serve(manager, B)
    queue.look(first=tokens(A, 1))
    assert not queue.lookahead.wanted


def test_a_match_is_found_again_when_one_child_has_gone_and_another_come() -> None:
    manager = make()
    queue = Queue(manager)
    for document in (C, A):
        serve(manager, document)
    waiting = {"first": tokens(A, 1), "second": tokens(B, 1)}
    queue.look(**waiting)
    manager.evict(12)  # C, that nobody waits for
    serve(manager, B)
    queue.look(**waiting)
    assert [w.position for w in queue.lookahead.wanted] == [1, 2]


def test_a_request_that_comes_back_longer_is_matched_anew() -> None:
    """It was retracted, and what it had computed is in the tree."""
    manager = make()
    queue = Queue(manager)
    serve(manager, A)
    queue.look(first=A)
    queue.look()
    serve(manager, tokens(A, 1, 2, 3))
    queue.look(first=tokens(A, 1, 2, 3, 4))
    assert [w.saved_tokens for w in queue.lookahead.wanted] == [15]


def beside(manager: Manager, num_running: int) -> Queue:
    """A, which is cached, is first in the queue beside so many requests that run, eight steps each
    on the mean."""
    queue = Queue(manager)
    serve(manager, A)
    for own in range(num_running):
        run(manager, own=10_000 + own)
    queue.look(first=tokens(A, 1))
    manager.counters.mean_decode_steps = 8.0
    return queue


class TestWorth:
    """One full group, a token a page, a page a large page: all numbers can be done in the head."""

    def admits(self, num_running: int, demand: int, **policy: int) -> bool:
        """Twenty large pages of which A, first in the queue, has twelve and nobody the rest, beside
        four for every request that runs."""
        manager = make(20 + 4 * num_running, max_requests=1001, **policy)
        return not beside(manager, num_running).lookahead.not_worth([demand], num_running)

    def test_it_is_while_nothing_that_is_wanted_must_go(self) -> None:
        assert self.admits(1000, demand=8)
        assert not self.admits(1000, demand=9)

    def test_it_is_while_few_requests_run(self) -> None:
        # 12 tokens in 12 pages at position 1: worth 1. A slot: 256 · 8 / (R² · 4) = 512 / R².
        assert self.admits(22, demand=9)
        assert not self.admits(23, demand=9)

    def test_it_always_is_when_none_runs(self) -> None:
        assert self.admits(0, demand=20)

    def test_it_always_is_without_a_price_of_a_step(self) -> None:
        assert self.admits(1000, demand=9, step_cost_tokens=0)


@pytest.mark.parametrize("documents", [1, 20])
def test_a_request_takes_its_share_of_what_it_has_in_common(documents: int) -> None:
    """Twenty requests on one document of twelve pages pin 92 pages together, on twenty 320. One
    more is worth 256 · 8 / (20 · U): 1.1, or 0.3 of what a page of A is."""
    manager = make(12 + 20 * 16, max_requests=21)
    queue = Queue(manager)
    serve(manager, A)
    for n in range(20):
        first = 1000 + 100 * (n % documents)
        run(manager, tokens(range(first, first + 12)), own=10_000 + n)
    queue.look(first=tokens(A, 1))
    manager.counters.mean_decode_steps = 8.0
    assert inside.num_used(manager) == [12 * documents + 80]
    is_kept_out = queue.lookahead.not_worth([inside.num_free(manager) + 1], 20) > 0
    assert is_kept_out == (documents == 20)


def test_the_mean_output_follows_what_requests_answer() -> None:
    manager = make()
    for _ in range(1000):
        manager.counters.finished(40)
    assert manager.counters.mean_decode_steps == pytest.approx(40, abs=0.1)
    manager.reset()
    assert manager.counters.mean_decode_steps == pytest.approx(40, abs=0.1)


# -- with host memory below the pool --------------------------------------------------------------


def whole_hit(manager: TieredManager, document: Tokens) -> int:
    return manager.match_tiers(None, document)[1].path.num_pages


def test_what_is_hit_soonest_leaves_the_host_last() -> None:
    manager = make_tiered(Full(), num_large=12, num_host=24)
    queue = Queue(manager)
    for document in (A, B):
        serve(manager, document)
    evict_all(manager)
    queue.look(first=tokens(A, 1))
    serve(manager, C)
    evict_all(manager)
    assert [whole_hit(manager, d) for d in (A, B, C)] == [12, 0, 12]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_remembered_of_two_tiers_is_what_they_have(seed: int) -> None:
    pick = random.Random(seed)
    manager = make_tiered(Full(), SlidingWindow(5), num_large=40, num_host=40)
    remembers = Queue(manager)
    for _ in range(40):
        document = pick.choice((A, B, C))[: pick.randint(4, 12)]
        match pick.choice(("serve", "evict", "lose", "load")):
            case "serve":
                running = begin(manager, document, publish=True)
                manager.publish(running, None, document)
                manager.release(running)
            case "evict":
                inside.evict_large(manager, pick.randint(1, 10))
            case "lose":
                inside.evict_large_from_host(manager, pick.randint(1, 10))
            case "load":
                hit = manager.match_tiers(None, document)[1]
                if running := manager.load(hit):
                    manager.release(running)
        assert refreshed(manager, remembers) == refreshed(manager, Queue(manager))
    manager.check_idle()


def refreshed(manager: TieredManager, queue: Queue) -> list[list[tuple[int, int]]]:
    """The large pages of each tier that a look at the queue gives a new time, and which."""
    before = inside.tick(manager)
    queue.look(**{str(n): tokens(d[:9], n) for n, d in enumerate((B, C, A))})
    found = []
    for times in (inside.times(manager), inside.host_times(manager)):
        new = np.flatnonzero(times > before).tolist()
        found.append([(large, int(times[large]) - before) for large in new])
    return found


@pytest.mark.parametrize(
    ("prices", "most_running"),
    [
        (Prices(), 22),
        # 12 pages of 8 bytes, there and back, in the time of 3 tokens and of 13, of which 12 count.
        (Prices(copies=Rate(64, 10), prompts=Rate(1, 10)), 45),
        (Prices(copies=Rate(14, 10), prompts=Rate(1, 10)), 22),
    ],
    ids=["not measured", "cheap copies", "dear copies"],
)
def test_what_goes_to_the_host_costs_no_more_than_its_copies(
    prices: Prices, most_running: int
) -> None:
    """As in `TestWorth`: 12 · 256 · 8 / (R² · 4) against the tokens that are lost."""
    for num_running in (most_running, most_running + 1):
        manager = make_tiered(Full(), num_large=20 + 4 * num_running, num_host=40, max_requests=99)
        manager.prices = prices
        queue = beside(manager, num_running)
        is_kept_out = bool(queue.lookahead.not_worth([9], num_running))
        assert is_kept_out == (num_running > most_running)
