"""One request's life in small numbers: match, lock, reserve, extend, publish, slide, release."""

import core_inspector as inside
import numpy as np
import pytest
from core_builders import begin, grow, held_pages, hit_tokens, make_manager, serve, tokens
from core_inspector import digest, row_holds

from jenga_sglang.core.dependency import ChunkedLocal, Full, SlidingWindow
from jenga_sglang.core.manager import Manager

A = tokens(range(100, 112))


def used(manager: Manager) -> list[int]:
    """Used small pages of each group."""
    return inside.num_used(manager)


def cached(manager: Manager) -> list[int]:
    both = zip(inside.num_held(manager), inside.num_used(manager), strict=True)
    return [held - used for held, used in both]


# -- hits ----------------------------------------------------------------------------------------


def test_a_hit_ends_on_a_page_boundary() -> None:
    manager = make_manager(Full(), num_large=20, page_size=4)
    serve(manager, A)
    assert [hit_tokens(manager, A[:n]) for n in (3, 4, 7, 8, 12)] == [0, 4, 4, 8, 12]


def test_only_whole_pages_are_kept_for_others() -> None:
    manager = make_manager(Full(), num_large=20, page_size=4)
    serve(manager, A[:10])
    assert hit_tokens(manager, A) == 8
    assert inside.num_in_tree(manager) == 2


def test_histories_of_other_namespaces_are_no_hits() -> None:
    manager = make_manager(Full(), num_large=30)
    serve(manager, A, namespace="salt")
    assert hit_tokens(manager, A) == 0
    assert hit_tokens(manager, A, namespace="salt") == 12


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    geometry = make_manager(Full(), num_large=20).geometry
    manager = Manager(geometry, max_requests=4, max_length=100, prefix_cache=False)
    serve(manager, A)
    manager.check()
    assert hit_tokens(manager, A) == 0
    assert inside.num_held(manager) == [0]


def test_a_hit_says_which_group_cut_it_and_what_the_tree_knows() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=60)
    serve(manager, A)
    page = inside.pages_of(manager, A)[10:11]
    inside.evict_pages(manager, 1, page)
    hit = manager.match(None, A)
    assert (hit.path.num_pages, hit.matched_pages, hit.cut_by) == (10, 12, 1)
    running = begin(manager, tokens(A, 999))
    assert manager.counters.lost_hit_tokens == {1: 2}
    manager.release(running)


# -- lock and release ----------------------------------------------------------------------------


def test_a_lock_pins_only_what_each_group_needs() -> None:
    manager = make_manager(Full(), SlidingWindow(3), ChunkedLocal(8), num_large=60)
    serve(manager, A)
    assert (used(manager), cached(manager)) == ([0, 0, 0], [12, 12, 12])
    running = manager.lock(manager.match(None, A))
    assert used(manager) == [12, 2, 4]
    manager.check()
    manager.release(running)
    assert used(manager) == [0, 0, 0]
    manager.check()


def test_a_page_is_used_until_the_last_request_lets_go() -> None:
    manager = make_manager(Full(), num_large=40)
    serve(manager, A)
    one, two = (manager.lock(manager.match(None, A)) for _ in range(2))
    manager.release(one)
    assert used(manager) == [12]
    manager.release(two)
    assert used(manager) == [0]


def test_a_released_request_frees_what_it_did_not_leave_in_the_tree() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=40, page_size=4)
    running = begin(manager, A)
    manager.publish(running, None, A[:9])
    grow(manager, running, 20)
    manager.release(running)
    manager.check()
    assert (used(manager), cached(manager)) == ([0, 0], [2, 2])
    assert inside.num_free_ids(manager) == inside.num_ids(manager) - 2


def test_virtual_pages_that_only_a_request_kept_end_with_it() -> None:
    """A window-only model: behind the window nothing is held, and the pool is small, so others
    evict what this request left behind. Its virtual pages must not outlive it."""
    manager = make_manager(SlidingWindow(3), num_large=8, max_requests=2, max_length=40)
    for document in range(20):
        running = manager.lock(manager.miss(None))
        history = tokens(range(1000 * document, 1000 * document + 40))
        for length in range(1, 41):
            grow(manager, running, length)
            manager.publish(running, None, history[:length])
        manager.release(running)
        manager.check()
        assert inside.num_in_tree(manager) <= 8, (
            "each virtual page is there for a page that is held"
        )


# -- reserve and extend --------------------------------------------------------------------------


def test_pages_are_counted_in_whole_pages() -> None:
    manager = make_manager(Full(), num_large=20, page_size=4)
    running = manager.lock(manager.miss(None))
    assert [manager.new_pages(running, n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    grow(manager, running, 5)
    assert [manager.new_pages(running, n) for n in (4, 8, 9)] == [0, 0, 1]


def test_every_stripe_of_every_group_gets_a_small_page() -> None:
    manager = make_manager(Full(), SlidingWindow(9), num_large=40, layers=[2, 6], stripes=[1, 3])
    running = begin(manager, A[:5])
    manager.check()
    assert used(manager) == [5, 15]
    assert [table.shape[1] for table in inside.tables(manager)] == [1, 3]
    assert (inside.tables(manager)[1][running.row] > 0).all()


def test_a_refused_reservation_changes_nothing() -> None:
    """Six of ten large pages are pinned, four cached; three pages of both groups do not fit."""
    manager = make_manager(Full(), SlidingWindow(3), num_large=10, layers=[1, 1])
    serve(manager, A[:2])
    running = begin(manager, tokens(range(3)))
    before = digest(manager)
    assert not manager.reserve([(running, 3)])
    assert digest(manager) == before
    assert manager.counters.refused_reservations == 1
    assert manager.reserve([(running, 2)])


def test_a_batch_is_reserved_for_all_requests_or_for_none() -> None:
    manager = make_manager(Full(), num_large=6)
    serve(manager, A[:3])
    one, two = (manager.lock(manager.miss(None)) for _ in range(2))
    before = digest(manager)
    assert not manager.reserve([(one, 3), (two, 4)])
    assert digest(manager) == before
    assert manager.reserve([(one, 3), (two, 3)])
    manager.extend(two, 3)
    manager.extend(one, 3)
    assert used(manager) == [6]


def test_a_reservation_in_the_free_part_evicts_nothing() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=30)
    serve(manager, A)
    running = manager.lock(manager.miss(None))
    assert manager.reserve([(running, 3)])
    assert cached(manager) == [12, 12]
    assert manager.reserve([(running, 4)])
    assert cached(manager) == [12, 10]


def test_the_whole_pool_can_be_cached_and_then_used_again() -> None:
    manager = make_manager(Full(), num_large=12)
    serve(manager, A)
    assert inside.num_free(manager) == 0
    running = begin(manager, tokens(range(12)))
    assert (used(manager), cached(manager)) == ([12], [0])
    manager.release(running)


def test_pages_that_were_never_reserved_are_refused_and_nothing_changes() -> None:
    """Group 0 would have had room for the page, group 1 has none."""
    manager = make_manager(Full(), SlidingWindow(100), num_large=3, layers=[1, 2])
    running = begin(manager, A[:2])
    assert inside.num_free(manager) == 0
    before = digest(manager)
    with pytest.raises(MemoryError, match="never reserved"):
        manager.extend(running, 3)
    assert digest(manager) == before


# -- slide ---------------------------------------------------------------------------------------


def test_a_window_lets_go_of_what_is_behind_it() -> None:
    manager = make_manager(Full(), SlidingWindow(5), num_large=40)
    running = begin(manager, A)
    manager.slide(running, 12)
    manager.check()
    assert row_holds(manager, running, 0) == set(range(12))
    assert row_holds(manager, running, 1) == {8, 9, 10, 11}
    assert used(manager) == [12, 4]


def test_sliding_keeps_the_last_page_boundary_hittable() -> None:
    """Window 4, four tokens a page. After 11 tokens the next one reads 8 to 10, but a hit at
    8 needs 5 to 7, so page 1 stays."""
    manager = make_manager(Full(), SlidingWindow(4), num_large=40, page_size=4)
    running = begin(manager, A)
    manager.slide(running, 11)
    assert row_holds(manager, running, 1) == {1, 2}
    manager.publish(running, None, A[:11])
    manager.release(running)
    assert hit_tokens(manager, A) == 8


def test_sliding_again_to_a_shorter_length_takes_nothing_back() -> None:
    manager = make_manager(SlidingWindow(3), num_large=40)
    running = begin(manager, A)
    manager.slide(running, 10)
    manager.slide(running, 4)
    manager.check()
    assert row_holds(manager, running, 0) == {8, 9, 10, 11}


def test_a_tree_page_behind_the_window_stays_cached() -> None:
    manager = make_manager(SlidingWindow(3), num_large=40)
    running = begin(manager, A)
    manager.publish(running, None, A[:6], keep=[])
    manager.slide(running, 12)
    manager.check()
    assert (used(manager), cached(manager)) == ([2], [6])
    assert row_holds(manager, running, 0) == {0, 1, 2, 3, 4, 5, 10, 11}


def test_a_chunk_is_let_go_as_a_whole() -> None:
    manager = make_manager(ChunkedLocal(4), num_large=40)
    running = begin(manager, A[:7])
    manager.slide(running, 7)
    assert row_holds(manager, running, 0) == {4, 5, 6}
    grow(manager, running, 8)
    manager.slide(running, 8)
    assert row_holds(manager, running, 0) == set()


# -- publish -------------------------------------------------------------------------------------


def test_publishing_makes_pages_hits_while_the_request_runs() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=40)
    running = begin(manager, A)
    assert hit_tokens(manager, A) == 0
    manager.publish(running, None, A)
    assert hit_tokens(manager, A) == 12
    assert used(manager) == [12, 2]
    manager.check()


def test_publishing_goes_on_where_it_ended_last() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=40, page_size=2)
    running = begin(manager, A[:5])
    manager.publish(running, None, A[:5])
    grow(manager, running, 12)
    manager.publish(running, None, A)
    manager.check()
    assert held_pages(manager, 0, A) == list(range(6))
    assert running.tree_pages == 6


def test_two_requests_that_computed_the_same_keep_one_copy() -> None:
    manager = make_manager(Full(), SlidingWindow(5), num_large=60)
    one, two = begin(manager, A), begin(manager, A)
    manager.publish(one, None, A)
    assert used(manager) == [24, 4 + 12]
    manager.publish(two, None, A)
    manager.check()
    assert (used(manager), cached(manager)) == ([12, 4], [0, 8])
    assert two.row.tolist() == one.row.tolist()
    assert inside.num_in_tree(manager) == 12


def test_the_private_copy_is_freed_only_as_far_as_the_tree_knows_the_history() -> None:
    manager = make_manager(Full(), num_large=60)
    one, two = begin(manager, A[:5]), begin(manager, A)
    own = two.row.tolist()
    manager.publish(one, None, A[:5])
    manager.publish(two, None, A)
    manager.check()
    assert two.row.tolist() == one.row.tolist() + own[5:]
    assert used(manager) == [12]


def test_a_branch_shares_what_comes_before_it() -> None:
    manager = make_manager(Full(), num_large=60)
    fork = tokens(A[:5], range(7))
    one, two = begin(manager, A), begin(manager, fork)
    manager.publish(one, None, A)
    manager.publish(two, None, fork)
    manager.check()
    assert one.row[:5].tolist() == two.row[:5].tolist()
    assert not set(one.row[5:].tolist()) & set(two.row[5:].tolist())
    assert used(manager) == [12 + 7]


def test_a_hole_in_the_tree_is_filled_by_who_computes_it_again() -> None:
    """The window lost page 10, so a hit ends at 10 and page 10 is computed again. The tree keeps
    its own page of the full group and adopts the request's page of the window."""
    manager = make_manager(Full(), SlidingWindow(3), num_large=60)
    serve(manager, A)
    lost = inside.pages_of(manager, A)[10:11]
    full_page = inside.tables(manager)[0][lost, 0].item()
    inside.evict_pages(manager, 1, lost)
    running = begin(manager, A)
    assert running.hit.path.num_pages == 10
    mine = inside.tables(manager)[1][running.row[10], 0]
    held = inside.num_held(manager)[0]
    manager.publish(running, None, A)
    manager.check()
    assert running.row[10] == lost[0]
    assert inside.tables(manager)[0][lost, 0].item() == full_page
    assert inside.tables(manager)[1][lost, 0].item() == mine
    assert inside.num_held(manager)[0] == held - 2, "the copies of pages 10 and 11 are free"
    manager.release(running)
    assert hit_tokens(manager, A) == 12


def test_a_page_that_the_request_let_go_of_too_stays_a_hole() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=60)
    serve(manager, A)
    path = inside.pages_of(manager, A)
    inside.evict_pages(manager, 1, path[2:9])
    running = begin(manager, A[:9])
    assert running.hit.path.num_pages == 2
    manager.slide(running, 9)
    manager.publish(running, None, A[:9])
    manager.check()
    assert held_pages(manager, 1, A) == [0, 1, 7, 8, 9, 10, 11]


def test_a_hollow_page_is_taken_over_whole() -> None:
    """Nothing at all is left of pages 0 to 9, but the history is known up to page 11."""
    manager = make_manager(SlidingWindow(3), num_large=40)
    serve(manager, A)
    inside.evict_pages(manager, 0, inside.pages_of(manager, A)[:10])
    assert inside.pages_of(manager, A)[:10].tolist() == [0] * 10
    running = begin(manager, A[:6])
    mine = running.row.tolist()
    manager.publish(running, None, A[:6])
    manager.check()
    assert running.row.tolist() == mine
    assert held_pages(manager, 0, A) == [0, 1, 2, 3, 4, 5, 10, 11]


def test_a_prefix_that_the_tree_forgot_under_a_request_is_no_stumbling_block() -> None:
    """A chunk boundary needs nothing, so this request continues from four hollow pages; then the
    page that kept them known goes as well."""
    manager = make_manager(ChunkedLocal(4), num_large=20)
    serve(manager, A[:5])
    path = inside.pages_of(manager, A[:5])
    inside.evict_pages(manager, 0, path[:4])
    running = manager.lock(manager.match(None, A[:4]))
    assert running.row.tolist() == [0, 0, 0, 0]
    inside.evict_pages(manager, 0, path[4:])
    assert inside.find(manager, None, A).num_pages == 0
    grow(manager, running, 7)
    manager.publish(running, None, A[:7])
    manager.check()
    assert held_pages(manager, 0, A) == [4, 5, 6]
    manager.release(running)
    manager.check()
    assert hit_tokens(manager, A) == 7


def test_a_flush_forgets_everything() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=40)
    serve(manager, A)
    manager.reset()
    manager.check()
    assert hit_tokens(manager, A) == 0
    assert inside.num_free(manager) == 40


def test_the_same_calls_make_the_same_decisions() -> None:
    """Every rank decides alone and all must decide alike."""

    def run() -> list[object]:
        manager = make_manager(Full(), SlidingWindow(6), num_large=20, page_size=2, layers=[2, 3])
        random = np.random.default_rng(5)
        for _ in range(60):
            serve(manager, random.integers(0, 2, random.integers(1, 20)))
        return digest(manager)

    assert run() == run()


def test_room_is_asked_for_in_pages_of_all_stripes() -> None:
    """Ten large pages: a page of the first group takes two, one of the second three."""
    manager = make_manager(Full(), Full(), num_large=10, layers=[2, 3], stripes=[2, 3])
    assert manager.can_serve([5, 0]) and not manager.can_serve([6, 0])
    assert manager.can_serve([0, 3]) and not manager.can_serve([1, 3])
    assert manager.can_serve([2, 2]) and not manager.can_serve([3, 2])


def test_a_path_that_is_given_up_goes_in_every_group_and_nothing_else_does() -> None:
    manager = make_manager(Full(), SlidingWindow(100), num_large=60)
    first, second = tokens(range(100, 108)), tokens(range(200, 208))
    for history in (first, second):
        serve(manager, history)
    manager.give_up(inside.find(manager, None, first))
    manager.check()
    assert [held_pages(manager, g, first) for g in (0, 1)] == [[], []]
    assert [held_pages(manager, g, second) for g in (0, 1)] == [list(range(8))] * 2


def test_no_state_of_the_pool_has_the_number_of_an_earlier_one() -> None:
    manager = make_manager(Full(), num_large=60)
    seen = [manager.changes]
    for history in (tokens(range(4)), tokens(range(50, 58))):
        running = begin(manager, history)
        seen.append(manager.changes)
        manager.release(running)
        seen.append(manager.changes)
    manager.reset()
    seen.append(manager.changes)
    assert seen == sorted(set(seen))


def test_what_the_tree_gains_and_loses_is_noted_by_group_and_in_order() -> None:
    """A window of three tokens lets go of the first pages before they are in the tree."""
    manager = make_manager(Full(), SlidingWindow(3), num_large=60)
    inside.record_tree(manager)
    running = begin(manager, tokens(range(4)))
    manager.slide(running, 4)
    assert inside.tree_changes(manager) == []
    manager.publish(running, None, tokens(range(4)))
    pages = running.row.tolist()
    noted = [(c.group, c.held, c.virtual.tolist()) for c in inside.tree_changes(manager)]
    assert noted == [(0, True, pages), (1, True, pages[2:])]
    manager.release(running)
    assert inside.tree_changes(manager) == []
    manager.evict(4)
    noted = [(c.group, c.held, c.virtual.tolist()) for c in inside.tree_changes(manager)]
    lost = {
        g: sorted(p for group, _, virtual in noted if group == g for p in virtual) for g in (0, 1)
    }
    assert {held for _, held, _ in noted} == {False}
    assert lost == {0: sorted(pages), 1: sorted(pages[2:])}
