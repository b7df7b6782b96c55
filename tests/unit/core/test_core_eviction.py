"""The exact order in which cached pages go. A small page is a large page unless said otherwise."""

import core_inspector as inside
import pytest
from core_builders import begin, grow, held_pages, hit_tokens, make_manager, serve, tokens

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import ChunkedLocal, Full, SlidingWindow
from jenga_sglang.core.manager import Manager

A = tokens(range(100, 108))
B = tokens(range(200, 208))


def make_room(manager: Manager, pages: int) -> None:
    """Evict until ``pages`` new pages fit, and take none of them."""
    running = manager.lock(manager.miss(None))
    assert manager.reserve([(running, pages)])
    manager.release(running)
    manager.check()


def hit(manager: Manager, history: Tokens, length: int) -> None:
    """A request that continues from the first ``length`` tokens and is then dropped."""
    running = begin(manager, tokens(history[:length], 999))
    assert running.hit.path.num_pages * manager.page_size == length
    manager.release(running)


def test_the_least_recently_served_history_goes_first() -> None:
    manager = make_manager(Full(), num_large=16)
    serve(manager, A)
    serve(manager, B)
    make_room(manager, 1)
    assert held_pages(manager, 0, A) == [0, 1, 2, 3, 4, 5, 6]
    make_room(manager, 8)
    assert held_pages(manager, 0, A) == []
    assert held_pages(manager, 0, B) == list(range(8))


def test_a_hit_makes_a_history_recent() -> None:
    manager = make_manager(Full(), num_large=17)
    serve(manager, A)
    serve(manager, B)
    hit(manager, A, 8)
    make_room(manager, 9)
    assert held_pages(manager, 0, A) == list(range(8))
    assert held_pages(manager, 0, B) == []


def test_looking_for_a_hit_makes_nothing_recent() -> None:
    manager = make_manager(Full(), num_large=16)
    serve(manager, A)
    serve(manager, B)
    assert hit_tokens(manager, A) == 8
    manager.release(manager.lock(manager.match(None, A)))
    make_room(manager, 8)
    assert held_pages(manager, 0, A) == []


def test_a_full_history_goes_from_its_end() -> None:
    manager = make_manager(Full(), num_large=8)
    serve(manager, A)
    for pages in range(1, 9):
        make_room(manager, pages)
        assert held_pages(manager, 0, A) == list(range(8 - pages))


def test_aligned_the_longest_prefix_goes_first_in_every_group() -> None:
    """All pages of A have one time; each step needs one large page more in every group."""
    manager = make_manager(Full(), SlidingWindow(9), num_large=16)
    serve(manager, A)
    for pages in range(1, 9):
        make_room(manager, pages)
        assert held_pages(manager, 0, A) == list(range(8 - pages))
        assert held_pages(manager, 1, A) == list(range(8 - pages))
        assert hit_tokens(manager, A) == 8 - pages


def test_pages_that_slid_out_of_the_window_go_before_everything() -> None:
    """A and B need their window pages 5, 6, 7; pages 0 to 4 only made them possible, and go from
    the end of both. Room for one page is two large pages. Then goes what is older, B's."""
    manager = make_manager(Full(), SlidingWindow(4), num_large=32)
    serve(manager, B)
    serve(manager, A)
    for pages, transient in [(1, [0, 1, 2, 3]), (2, [0, 1, 2]), (4, [0]), (5, [])]:
        make_room(manager, pages)
        for history in (A, B):
            assert held_pages(manager, 0, history) == list(range(8))
            assert held_pages(manager, 1, history) == [*transient, 5, 6, 7]
        assert hit_tokens(manager, A) == hit_tokens(manager, B) == 8
    make_room(manager, 6)
    assert [held_pages(manager, g, A) for g in (0, 1)] == [list(range(8)), [5, 6, 7]]
    assert [held_pages(manager, g, B) for g in (0, 1)] == [list(range(7)), [5, 6]]


def test_balanced_a_hit_refreshes_only_what_it_needed() -> None:
    """A hit of 4 tokens needs full pages 0 to 3 and window pages 2 and 3 of A.

    What it did not need keeps its old time and goes before B, which was served between.
    """
    manager = make_manager(Full(), SlidingWindow(3), num_large=40)
    serve(manager, A)
    serve(manager, B)
    hit(manager, A, 4)
    # 8 full and 2 window pages of A, 8 and 2 of B, and 12 window pages that slid out but for the
    # two that the hit refreshed.
    transient, old_of_a, of_b = 10, 6, 10
    free = inside.num_free(manager)
    make_room(manager, (free + transient) // 2)
    assert held_pages(manager, 1, A) == [2, 3, 6, 7]
    assert held_pages(manager, 1, B) == [6, 7]
    make_room(manager, (free + transient + old_of_a) // 2)
    assert held_pages(manager, 0, A) == [0, 1, 2, 3]
    assert held_pages(manager, 1, A) == [2, 3]
    assert hit_tokens(manager, B) == 8
    make_room(manager, (free + transient + old_of_a + of_b) // 2)
    assert hit_tokens(manager, B) == 0
    assert hit_tokens(manager, A) == 4


def test_one_hit_gives_one_time_to_all_groups() -> None:
    manager = make_manager(Full(), SlidingWindow(5), ChunkedLocal(8), num_large=60)
    serve(manager, A)
    hit(manager, A, 7)
    pages = inside.pages_of(manager, A)
    large = [table[pages, 0] for table in inside.tables(manager)]
    times = [inside.times(manager)[of_group].tolist() for of_group in large]
    hit_time = inside.now(manager)
    assert times[0] == [hit_time] * 7 + [hit_time - 1]
    assert times[1] == [0, 0, 0] + [hit_time] * 4 + [hit_time - 1]
    assert times[2] == [hit_time] * 7 + [0]


def test_evicting_a_full_page_drops_all_below_it_in_every_group() -> None:
    """A and its fork share four pages. The fork is younger, but nothing reaches it without
    them."""
    manager = make_manager(Full(), SlidingWindow(4), num_large=60)
    fork = tokens(A[:4], range(300, 304))
    serve(manager, A)
    serve(manager, fork)
    path = inside.find(manager, None, A[:4])
    inside.evict_pages(manager, 0, inside.path_pages(manager, path)[2:3])
    manager.check()
    assert held_pages(manager, 0, A) == held_pages(manager, 0, fork) == [0, 1]
    assert held_pages(manager, 1, A) == held_pages(manager, 1, fork) == [0, 1]
    assert inside.num_held(manager) == [2, 2]
    assert inside.num_in_tree(manager) == 2


def test_evicting_a_sink_page_drops_all_below_it() -> None:
    manager = make_manager(SlidingWindow(4, sink_tokens=2), num_large=60)
    serve(manager, A)
    inside.evict_pages(manager, 0, inside.pages_of(manager, A)[1:2])
    manager.check()
    assert held_pages(manager, 0, A) == [0]
    assert inside.num_in_tree(manager) == 1


def test_evicting_a_window_page_costs_only_the_hits_that_needed_it() -> None:
    """Window 3 reads two earlier tokens: page 4 is needed at lengths 5 and 6."""
    manager = make_manager(Full(), SlidingWindow(3), num_large=60)
    serve(manager, A)
    inside.evict_pages(manager, 1, inside.pages_of(manager, A)[4:5])
    manager.check()
    assert held_pages(manager, 0, A) == list(range(8))
    assert [hit_tokens(manager, A[:n]) for n in range(9)] == [0, 1, 2, 3, 4, 4, 4, 7, 8]


def test_a_page_that_no_group_holds_is_forgotten() -> None:
    manager = make_manager(SlidingWindow(3), num_large=16)
    serve(manager, A)
    make_room(manager, 8 + 6)
    assert held_pages(manager, 0, A) == [6, 7]
    assert inside.num_in_tree(manager) == 2
    make_room(manager, 8 + 8)
    assert (inside.num_in_tree(manager), inside.nodes(manager)) == (0, [])


def test_pages_of_a_running_request_are_never_evicted() -> None:
    manager = make_manager(Full(), num_large=16)
    serve(manager, A)
    running = begin(manager, tokens(A, 999))
    serve(manager, B[:7])
    make_room(manager, 7)
    assert held_pages(manager, 0, A) == list(range(8))
    assert held_pages(manager, 0, B) == []
    manager.release(running)


# -- three small pages to a large page of group 0, two to one of group 1 -------------------------


def two_sizes(num_large: int) -> Manager:
    manager = make_manager(Full(), SlidingWindow(100), num_large=num_large, layers=[2, 3])
    assert inside.small_per_large(manager) == [3, 2]
    return manager


def test_a_large_page_is_as_recent_as_its_latest_page() -> None:
    """A's six pages fill two and three large pages; a hit on the first five keeps the last."""
    manager = two_sizes(num_large=12)
    serve(manager, A[:6])
    serve(manager, B[:6])
    hit(manager, A, 5)
    make_room(manager, 8)
    assert held_pages(manager, 0, B) == []
    assert held_pages(manager, 0, A) == list(range(6))


def test_a_large_page_goes_whole() -> None:
    """Room for one page of each group costs the last large page of each group."""
    manager = two_sizes(num_large=5)
    serve(manager, A[:6])
    assert inside.num_free(manager) == 0
    make_room(manager, 1)
    assert held_pages(manager, 0, A) == [0, 1, 2]
    assert inside.num_owned(manager)[0] == 1


def test_a_large_page_with_a_used_page_is_the_last_resort() -> None:
    """The request runs on page 0 of A; pages 1 and 2 share its large page."""
    manager = two_sizes(num_large=5)
    serve(manager, A[:6])
    running = manager.lock(manager.match(None, A[:1]))
    assert manager.reserve([(running, 2)])
    assert held_pages(manager, 0, A) == [0, 1, 2], "whole large pages were enough"
    assert manager.reserve([(running, 5)])
    assert held_pages(manager, 0, A) == [0], "now single pages beside a used one too"
    manager.check()
    manager.extend(running, 6)
    manager.check()


def test_taking_a_hole_leaves_cached_neighbours_as_recent_as_they_were() -> None:
    """The large page of A has a hole, which another request takes and leaves again."""
    manager = two_sizes(num_large=4)
    running = begin(manager, A[:2])
    manager.publish(running, None, A[:2])
    large = inside.tables(manager)[0][running.row[0], 0] // 3
    served_at = inside.times(manager)[large]
    grow(manager, running, 3)
    assert inside.tables(manager)[0][running.row[2], 0] // 3 == large
    manager.release(running)
    assert inside.times(manager)[large] == served_at > 0


def test_a_page_taken_anew_is_as_old_as_can_be_until_a_hit_needs_it() -> None:
    """Its memory was used a moment ago, for another history."""
    manager = make_manager(Full(), num_large=8)
    serve(manager, A)
    running = begin(manager, B)
    assert inside.times(manager)[inside.tables(manager)[0][running.row, 0]].tolist() == [0] * 8
    manager.release(running)


@pytest.mark.parametrize("pages", [1, 5, 8])
def test_eviction_by_count_frees_as_many_virtual_pages_as_it_says(pages: int) -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=32)
    serve(manager, A)
    free = inside.num_free_ids(manager)
    freed = manager.evict(pages)
    manager.check()
    assert freed == inside.num_free_ids(manager) - free >= pages
    assert held_pages(manager, 0, A) == list(range(8 - freed))


def test_eviction_by_count_stops_when_nothing_is_cached() -> None:
    manager = make_manager(Full(), SlidingWindow(3), num_large=32)
    serve(manager, A)
    assert manager.evict(100) == 8
    assert inside.num_held(manager) == [0, 0]
