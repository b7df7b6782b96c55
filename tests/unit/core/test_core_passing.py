"""Pages that one step alone reads: who they are, what they take, and that they are gone after it.

Everywhere: pages of one token, a full group of one layer and a window of four tokens in three
stripes, where nothing else is said. A small page is a large page.
"""

import core_inspector as inside
import numpy as np
import pytest
from core_builders import make_manager

from jenga_sglang.core.admission import fleeting_share, request_pages, step_pages
from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

WINDOW = 1


def tokens(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int64)


def make_pool(num_large: int) -> Manager:
    return make_manager(
        Full(), SlidingWindow(4), num_large=num_large, layers=[1, 3], stripes=[1, 3]
    )


def begin(manager: Manager) -> Running:
    return manager.lock(manager.miss(None))


def grow(manager: Manager, running: Running, length: int, *wanted: int) -> bool:
    """Prepare a step to ``length`` tokens, in which pages may pass."""
    pages = manager.new_pages(running, length)
    fits = manager.reserve([(running, pages)], [wanted])
    if fits:
        manager.extend(running, length)
    return fits


def passing(running: Running) -> list[int]:
    """Places in the row of pages that pass in the window group."""
    row = running.row.tolist()
    return sorted(row.index(page) for _, pages in running.passing for page in pages.tolist())


def fill(manager: Manager, count: int) -> None:
    """Leave ``count`` tokens in the cache that somebody has used."""
    running = begin(manager)
    manager.reserve([(running, count)])
    manager.extend(running, count)
    manager.publish(running, None, tokens(1000, count), list(range(count + 1)))
    manager.release(running)


def test_nothing_passes_where_there_is_room() -> None:
    manager = make_pool(80)
    running = begin(manager)
    assert grow(manager, running, 20)
    assert passing(running) == []
    assert inside.num_used(manager) == [20, 60]


def test_all_but_the_window_passes_where_memory_is_short() -> None:
    """Whoever goes on from 19 tokens reads three of them, and the last page may not be full: of 20
    tokens those from 16 on stay. The others have one small page in place of three."""
    manager = make_pool(79)
    running = begin(manager)
    assert grow(manager, running, 20)
    assert passing(running) == list(range(16))
    assert inside.num_used(manager) == [20, 16 + 3 * 4]
    table = inside.tables(manager)[WINDOW][running.row]
    assert (table[:16] == table[:16, :1]).all()
    assert len(set(table.ravel().tolist())) == 16 + 3 * 4
    manager.check()


def test_what_passes_is_free_when_the_step_has_been_launched() -> None:
    manager = make_pool(79)
    running = begin(manager)
    grow(manager, running, 20)
    manager.end_step()
    assert inside.num_used(manager) == [20, 3 * 4]
    assert passing(running) == []
    assert not inside.tables(manager)[WINDOW][running.row[:16]].any()
    manager.check()


@pytest.mark.parametrize("call", ["slide", "publish", "release", "extend"])
def test_the_requests_own_next_call_ends_it_as_well(call: str) -> None:
    manager = make_pool(79)
    running = begin(manager)
    grow(manager, running, 20)
    row = running.row[:16].copy()
    if call == "slide":
        manager.slide(running, 20)
    elif call == "publish":
        manager.publish(running, None, tokens(0, 20))
    elif call == "release":
        manager.release(running)
    else:
        manager.reserve([(running, 1)])
        manager.extend(running, 21)
    assert not inside.tables(manager)[WINDOW][row].any()
    manager.check()


def test_what_passes_is_no_hit() -> None:
    """Of 20 tokens that are published, the window group can go on from 19 and 20 alone."""
    manager = make_pool(79)
    running = begin(manager)
    grow(manager, running, 20)
    manager.publish(running, None, tokens(0, 20))
    for length in range(1, 21):
        hit = manager.match(None, tokens(0, length))
        assert hit.path.num_pages == (length if length >= 19 else 0)
        assert hit.matched_pages == length


def test_hits_that_are_wanted_stay_possible() -> None:
    """A hit of 8 tokens needs the last three of them."""
    manager = make_pool(79)
    running = begin(manager)
    assert grow(manager, running, 20, 8)
    assert passing(running) == [*range(5), *range(8, 16)]
    manager.publish(running, None, tokens(0, 20))
    assert manager.match(None, tokens(0, 12)).path.num_pages == 8


def test_hits_that_are_wanted_go_before_the_step_does() -> None:
    """With them it takes 20 + 13 + 3 · 7 large pages, without 20 + 16 + 3 · 4."""
    manager = make_pool(53)
    running = begin(manager)
    assert grow(manager, running, 20, 8)
    assert passing(running) == list(range(16))


def test_what_nobody_has_used_gives_way_and_what_somebody_has_does_not() -> None:
    """80 of 100 large pages are cached. What no hit needed of them is worth nothing."""
    manager = make_pool(100)
    running = begin(manager)
    manager.reserve([(running, 20)])
    manager.extend(running, 20)
    manager.publish(running, None, tokens(1000, 20))
    manager.release(running)
    free = inside.num_free(manager)
    assert free == 100 - 20 - 60
    other = begin(manager)
    # Of the window's 60 large pages a hit of all 20 tokens needed nine.
    assert grow(manager, other, 16) and passing(other) == []
    manager.release(other)

    manager = make_pool(100)
    fill(manager, 20)
    other = begin(manager)
    assert grow(manager, other, 16) and passing(other) == list(range(12))


def test_a_second_chunk_keeps_the_window_before_it() -> None:
    manager = make_pool(62)
    running = begin(manager)
    grow(manager, running, 20)
    manager.slide(running, 20)
    assert grow(manager, running, 32)
    assert passing(running) == list(range(20, 28))
    held = np.flatnonzero(inside.tables(manager)[WINDOW][running.row, 0])
    assert held.tolist() == list(range(17, 32))
    manager.check()


def test_two_requests_of_a_step_share_nothing() -> None:
    manager = make_pool(100)
    both = [begin(manager), begin(manager)]
    assert manager.reserve([(r, 20) for r in both], [(), ()])
    for running in both:
        manager.extend(running, 20)
        assert passing(running) == list(range(16))
    tables = [set(inside.tables(manager)[WINDOW][r.row].ravel().tolist()) for r in both]
    assert not tables[0] & tables[1]
    manager.check()


def test_all_pages_of_a_request_stay_that_wants_it_so() -> None:
    manager = make_pool(200)
    fill(manager, 40)
    both = [begin(manager), begin(manager)]
    assert manager.reserve([(r, 16) for r in both], [(), None])
    for running in both:
        manager.extend(running, 16)
    assert passing(both[0]) == list(range(12)) and passing(both[1]) == []


def test_nothing_passes_in_steps_that_do_not_say_so() -> None:
    manager = make_pool(79)
    running = begin(manager)
    assert not manager.reserve([(running, 20)])


def test_sinks_stay() -> None:
    manager = make_manager(Full(), SlidingWindow(4, 2), num_large=79, layers=[1, 3], stripes=[1, 3])
    running = begin(manager)
    assert grow(manager, running, 20)
    assert passing(running) == list(range(2, 16))


def one_group(**kwargs: object) -> Manager:
    spec = LayerGroupSpec("window 4", (0, 1, 2), SlidingWindow(4), 8, 8, **kwargs)
    geometry = Geometry((GroupGeometry(spec, 1, 3),), 1, 16 * 60)
    return Manager(geometry, max_requests=4, max_length=64)


def test_a_group_whose_rows_are_read_again_later_has_no_page_that_passes() -> None:
    passes, stays = one_group(), one_group(is_read_late=True)
    assert grow(passes, begin(passes), 20)
    assert not grow(stays, begin(stays), 20)


def test_the_policy_can_be_switched_off() -> None:
    geometry = make_pool(79).geometry
    policy = CachePolicy.parse("passing_pages=off")
    manager = Manager(geometry, max_requests=4, max_length=64, policy=policy)
    assert not grow(manager, begin(manager), 20)
    assert step_pages(manager, 20) == [20, 20]


def test_admission_counts_the_room_that_is_left_to_take() -> None:
    """Of a step of 20 tokens at most 5 pages stay, and 15 pass, which are as much as 5. Before it
    the history has no more than 5, and it may begin inside a page."""
    manager = make_pool(200)
    assert step_pages(manager, 20) == [20, 5 + 5]
    assert step_pages(manager, 5) == [5, 5]
    assert request_pages(manager, 40, 20, 0) == [40, 5 + 5 + 6]
    assert fleeting_share(manager, 20) == 3 * 10 / 200


def test_what_admission_counts_is_enough() -> None:
    """For every length and chunk, a request that takes what was counted never lacks a page."""
    for chunk in range(1, 24):
        for length in range(1, 40):
            manager = make_pool(200)
            counted = request_pages(manager, length, chunk, 0)
            large = sum(n * s for n, s in zip(counted, inside.stripes(manager), strict=True))
            manager = make_pool(large)
            running = begin(manager)
            for stop in (*range(chunk, length, chunk), length):
                manager.slide(running, running.length)
                assert grow(manager, running, stop)


def test_a_page_that_is_shared_and_passes_nowhere_is_found() -> None:
    manager = make_pool(79)
    running = begin(manager)
    grow(manager, running, 20)
    running.passing = [(g, pages[1:]) for g, pages in running.passing]
    with pytest.raises(CorruptPool, match="group 1"):
        manager.check()


@pytest.mark.parametrize(("num_large", "fits"), [(63, False), (64, True)])
def test_a_page_each_for_many_requests_is_no_step_of_one(num_large: int, fits: bool) -> None:
    """Eight decodes have four small pages each and ask for as many. Of a chunk of eight tokens
    three could pass; none does here: what is asked for is what a reservation takes."""
    manager = make_pool(num_large)
    batch = [begin(manager) for _ in range(8)]
    assert manager.reserve([(running, 1) for running in batch])
    manager.extend_each(batch)
    assert manager.make_way(8, passes=True)
    assert manager.make_way(8) == manager.reserve([(running, 1) for running in batch]) == fits
