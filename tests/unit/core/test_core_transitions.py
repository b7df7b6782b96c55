"""Rare transitions, in numbers small enough to work out by hand."""

import core_inspector as inside
import numpy as np
import pytest
from core_builders import (
    UNIT_BYTES,
    begin,
    grow,
    held_pages,
    make_geometry,
    make_manager,
    serve,
    tokens,
)

from jenga_sglang.core.books.tree import Encoded, Path, PrefixTree, Tokens
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import CrossAttention, Full, LastState, SlidingWindow
from jenga_sglang.core.live_groups import retire_group
from jenga_sglang.core.lookahead import Lookahead
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

A = tokens(range(100, 112))
FORK = tokens(A[:4], range(200, 208))
B = tokens(range(300, 312))


def make_room(manager: Manager, pages: int) -> None:
    """Evict until ``pages`` new pages fit, and take none of them."""
    running = manager.lock(manager.miss(None))
    assert manager.reserve([(running, pages)])
    manager.release(running)
    manager.check()


# -- which large page goes first -----------------------------------------------------------------


def halves() -> Manager:
    """Two windows in six large pages, which hold two pages of group 0 or one of group 1. Group 0
    has pages 0 and 3 of A in one large page, 1 and 2 in another."""
    window = SlidingWindow(100)
    manager = make_manager(window, window, num_large=6, layers=[1, 2])
    serve(manager, A[:1])
    running = begin(manager, A[:3])
    grow(manager, running, 4)
    places = (inside.tables(manager)[0][running.row, 0] // 2).tolist()
    assert places[0] == places[3] and places[1] == places[2] != places[0]
    manager.publish(running, None, A[:4])
    manager.release(running)
    assert (inside.num_free(manager), inside.num_owned(manager)) == (0, [2, 4])
    return manager


def test_of_equal_times_the_large_page_with_the_deepest_tenant_goes_first() -> None:
    """Not the one whose shallowest tenant is deeper: page 3 goes, and takes page 0 along."""
    manager = halves()
    make_room(manager, 1)
    assert held_pages(manager, 0, A) == [1, 2]
    assert held_pages(manager, 1, A) == [0, 1, 2]


def test_a_page_behind_the_sinks_takes_nothing_along() -> None:
    manager = make_manager(SlidingWindow(4, sink_tokens=2), num_large=60)
    serve(manager, A)
    inside.evict_pages(manager, 0, inside.pages_of(manager, A)[2:3])
    manager.check()
    assert held_pages(manager, 0, A) == [0, 1, *range(3, 12)]


def test_what_falls_with_pages_of_one_history_is_the_same_in_any_order() -> None:
    """Pages 2 and 6 lie in two nodes. The second falls with the first, and is counted once."""
    manager = make_manager(Full(), SlidingWindow(100), num_large=80)
    serve(manager, A)
    serve(manager, FORK)
    pages = inside.pages_of(manager, A)
    assert len(inside.nodes_of(manager, pages[[2, 6]])) == 2
    inside.evict_pages(manager, 0, pages[[6, 2]])
    manager.check()
    assert [held_pages(manager, g, A) for g in (0, 1)] == [[0, 1], [0, 1]]
    assert manager.counters.evicted == {0: 2}
    assert manager.counters.cascaded == {0: 1 + 8 + 7, 1: 2 + 8 + 8}


# -- what an encoder made ------------------------------------------------------------------------

IMAGE = Encoded(None, 4)


def seeing() -> tuple[Manager, Tokens]:
    """Text and image layers, a token a page; a history of four image tokens and two of text."""
    manager = make_manager(Full(), CrossAttention(), num_large=40)
    return manager, tokens([1000] * 4, 1, 2)


def insert(manager: Manager, running: Running, history: Tokens) -> None:
    grow(manager, running, len(history))
    manager.publish(running, IMAGE, history)


@pytest.mark.parametrize("in_one_node", [True, False])
def test_no_pinned_page_of_an_encoder_goes_with_its_end(in_one_node: bool) -> None:
    """One request has computed half of the image, another all of it and has ended."""
    manager, history = seeing()
    half, whole = (manager.lock(manager.match(IMAGE, history)) for _ in range(2))
    for running, length in ((whole, 6), (half, 2)) if in_one_node else ((half, 2), (whole, 6)):
        insert(manager, running, history[:length])
    manager.release(whole)
    pages = inside.pages_of(manager, history, IMAGE)
    assert len(inside.nodes_of(manager, pages)) == (1 if in_one_node else 2)
    inside.evict_pages(manager, 1, pages[2:3])
    manager.check()
    assert inside.pages_of(manager, history, IMAGE).tolist() == half.row.tolist()
    assert inside.num_used(manager) == [0, 2]
    assert inside.num_held(manager) == [0, 2]


def test_what_an_encoder_made_goes_as_a_whole_when_nobody_holds_it() -> None:
    manager, history = seeing()
    for length in (2, 6):
        running = manager.lock(manager.match(IMAGE, history[:length]))
        insert(manager, running, history[:length])
        manager.release(running)
    pages = inside.pages_of(manager, history, IMAGE)
    assert len(pages) == 6
    inside.evict_pages(manager, 1, pages[3:4])
    manager.check()
    assert (inside.num_in_tree(manager), inside.num_held(manager)) == (0, [0, 0])


# -- ids of virtual pages ------------------------------------------------------------------------


def without_full(num_large: int) -> Manager:
    """A window of two tokens alone: the group that says how many ids there are has been retired."""
    manager = make_manager(Full(), SlidingWindow(2), num_large=num_large)
    retire_group(manager, 0)
    assert inside.num_ids(manager) == num_large
    return manager


def test_a_reservation_fails_where_there_are_no_ids_although_there_is_memory() -> None:
    manager = without_full(8)
    running = begin(manager, A[:4])
    manager.slide(running, 4)
    grow(manager, running, 8)
    manager.slide(running, 8)
    assert (inside.num_free_ids(manager), inside.num_free(manager)) == (0, 7)
    assert not manager.reserve([(running, 1)])
    assert manager.counters.refused_reservations == 1
    manager.check()


def test_ids_of_cached_pages_are_taken_back_for_a_reservation() -> None:
    manager = without_full(8)
    serve(manager, B[:4])
    running = begin(manager, A[:2])
    assert (inside.num_free_ids(manager), inside.num_free(manager)) == (2, 2)
    manager.slide(running, 2)
    assert manager.reserve([(running, 4)])
    assert inside.num_free_ids(manager) >= 4
    manager.extend(running, 6)
    manager.check()
    assert len(held_pages(manager, 1, B)) == 2


# -- paths that were known -----------------------------------------------------------------------


def test_a_known_path_whose_node_was_cut_is_found_anew() -> None:
    """What hung below a cut is still whole, and must not be believed."""
    tree = PrefixTree(1, 40)
    pages = np.arange(1, 21, dtype=np.int64)
    tree.extend(tree.find(None, A), A, pages[:12])
    tree.extend(tree.find(None, FORK), FORK, pages[12:])
    known = tree.find(None, FORK)
    shared = known.node.parent
    assert shared is not None and known.num_pages == 12
    tree.cut(shared, 2)
    assert len(known.node.pages) == 8
    assert tree.find(None, FORK, known) == tree.find(None, FORK) == Path(shared, 2)


def test_a_waiting_request_wants_nothing_of_a_history_that_was_cut() -> None:
    """Its route pins nothing. The ids and the memory of its pages are B's by then."""
    geometry = make_geometry([Full()], 24)
    manager = Manager(geometry, max_requests=8, max_length=1000)
    lookahead = Lookahead(manager)

    def look() -> list[tuple[int, int, float]]:
        inside.tick(manager)
        lookahead.look(["waits"], lambda index: (None, tokens(FORK, 999)))
        return [(w.position, w.saved_tokens, w.large_pages) for w in lookahead.wanted]

    serve(manager, A)
    serve(manager, FORK)
    assert look() == [(1, 12, 12.0)]
    inside.evict_pages(manager, 0, inside.pages_of(manager, A)[:1])
    assert inside.num_in_tree(manager) == 0
    serve(manager, B)
    serve(manager, B + 100)
    times = inside.times(manager).tolist()
    assert look() == []
    assert inside.times(manager).tolist() == times


# -- what is held for others ---------------------------------------------------------------------


def holder(num_large: int) -> Manager:
    """A request that needs two pages, and holds two more of a hit that others may ask for."""
    policy = CachePolicy(step_cost_tokens=1)
    geometry = make_geometry([SlidingWindow(3)], num_large)
    manager = Manager(geometry, max_requests=8, max_length=1000, policy=policy)
    manager.counters.mean_decode_steps = 24
    serve(manager, tokens(A[:6], [900]))
    running = begin(manager, A)
    manager.slide(running, 12)
    assert inside.num_used(manager) == [4]
    return manager


def test_a_decode_makes_running_requests_give_up_what_they_hold_for_others() -> None:
    manager = holder(12)
    assert manager.make_way(8)
    assert inside.num_used(manager) == [4], "there is room beside it"
    assert manager.make_way(9)
    assert inside.num_used(manager) == [2]
    manager.check()
    assert manager.make_way(10) and not manager.make_way(11)


def test_two_requests_that_computed_one_page_both_hold_the_one_that_stays() -> None:
    manager = make_manager(Full(), num_large=8)
    twins = [begin(manager, A[:1]) for _ in range(2)]
    for twin in twins:
        manager.publish(twin, None, A[:1])
    manager.check()
    (page,) = inside.pages_of(manager, A[:1]).tolist()
    assert [twin.row.tolist() for twin in twins] == [[page], [page]]
    assert inside.pin_counts(manager)[:, page].tolist() == [2, 2]
    manager.release(twins[0])
    make_room(manager, 7)
    assert held_pages(manager, 0, A) == [0], "the other still runs on it"
    manager.release(twins[1])
    make_room(manager, 8)
    assert held_pages(manager, 0, A) == []


def test_a_large_page_that_a_private_page_leaves_idle_can_be_evicted() -> None:
    """Two cached pages of A and the private end of a request share it, until that is aborted."""
    manager = make_manager(Full(), SlidingWindow(100), num_large=4, layers=[2, 3])
    running = begin(manager, A[:2])
    manager.publish(running, None, A[:2])
    grow(manager, running, 3)
    assert inside.num_owned(manager) == [1, 2]
    manager.release(running)
    manager.check()
    make_room(manager, 4)
    assert held_pages(manager, 0, A) == []


# -- snapshots of states -------------------------------------------------------------------------


def recurrent(num_large: int, *sizes: int, answer: int = 0) -> Manager:
    """Rows and groups of states, a token a page; ``sizes`` are those of the states in small pages
    of rows."""
    rows = LayerGroupSpec("rows", (0,), Full(), UNIT_BYTES, 0)
    specs = [
        LayerGroupSpec(f"states{n}", (n + 1,), LastState(), state_bytes=(size * UNIT_BYTES,))
        for n, size in enumerate(sizes)
    ]
    cuts = tuple(GroupGeometry(spec, 1) for spec in (rows, *specs))
    ample = Geometry(cuts, 1, 1 << 40)
    geometry = ample.resized(ample.large_page_bytes * (num_large + 1))
    policy = CachePolicy(state_share_percent=0, answer_state_tokens=answer)
    return Manager(geometry, max_requests=4, max_length=64, policy=policy)


def compute(manager: Manager, history: Tokens, *partings: int) -> Running:
    running = begin(manager, history)
    manager.save_states(running, 0, len(history), len(history), partings)
    return running


def test_snapshots_in_the_tree_are_as_recent_as_what_is_computed() -> None:
    """Those after 4, 8 and 11 tokens, each in its own page, and no page before them."""
    manager = recurrent(60, 2)
    running = compute(manager, A, 4, 8, 12)
    assert [length for length, _ in running.saves] == [4, 8, 11, 12]
    manager.publish(running, None, A)
    assert [page + 1 for page in held_pages(manager, 1, A)] == [4, 8, 11, 12]
    large = inside.tables(manager)[1][running.row[[3, 7, 10, 11]], 0]
    assert inside.times(manager)[large].tolist() == [inside.now(manager)] * 4
    assert running.kept == [0, 4, 8, 11, 12, 12]


def test_a_snapshot_that_is_in_the_tree_follows_the_answer_no_more() -> None:
    manager = recurrent(60, 1, answer=2)
    running = compute(manager, A[:1])
    for length in range(2, 5):
        grow(manager, running, length)
        manager.save_states(running, length - 1, length, 1)
    assert running.answer_page == 4
    manager.publish(running, None, A[:4])
    assert running.answer_page == 0
    for length in range(5, 7):
        grow(manager, running, length)
        manager.save_states(running, length - 1, length, 1)
    manager.check()
    assert running.answer_page == 6 and held_pages(manager, 1, A[:4]) == [3]


def test_a_snapshot_goes_into_anybodys_hole_before_it_opens_a_large_page() -> None:
    """A large page holds four rows, two states of the one group, or one of the other. Of nine the
    first request takes three. The other takes four, its first snapshot the hole beside its own
    state and one, and the second the hole of the first request and the last."""
    manager = recurrent(9, 2, 4)
    assert inside.small_per_large(manager) == [4, 2, 1]
    begin(manager, B[:1])
    running = compute(manager, A[:8], 6)
    assert [length for length, _ in running.saves] == [6, 6, 7, 7]
    assert inside.num_owned(manager) == [3, 2, 4]
    assert manager.counters.skipped_snapshots == 0
    manager.check()
