"""Tails: pages behind what a request has for good, for drafts that may not be accepted."""

import itertools

import core_inspector as inside
import pytest
from core_builders import begin, hit_tokens, make_geometry, make_manager, tokens

from jenga_sglang.core.admission import (
    fits_alone,
    growth_room,
    longest_request,
    request_pages,
    tails_to_come,
)
from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running
from jenga_sglang.core.stats import pool_stats

KINDS = [
    (Full(),),
    (SlidingWindow(9),),
    (SlidingWindow(2, sink_tokens=1),),
    (ChunkedLocal(10),),
    (Full(), SlidingWindow(6), ChunkedLocal(8)),
    (SlidingWindow(5), SlidingWindow(40)),
]


def draft(manager: Manager, running: Running, stop: int) -> None:
    """Room for drafts up to ``stop`` tokens; the pool must have it."""
    assert manager.reserve([(running, manager.new_pages(running, stop))])
    manager.extend_tail(running, stop)


def held(running: Running) -> list[list[tuple[int, int]]]:
    return [[(r.start, r.stop) for r in ranges] for ranges in running.held]


def held_pages(running: Running) -> list[int]:
    return [sum(r.size for r in ranges) for ranges in running.held]


def test_windows_slide_to_what_is_accepted_and_never_further() -> None:
    """Pages of 4, a window of 6: of 18 tokens it needs those from 12 on, of 23 those from 17 on."""
    manager = make_manager(Full(), SlidingWindow(6), num_large=40, page_size=4)
    running = begin(manager, tokens(range(18)))
    manager.slide(running, 18)
    assert held(running) == [[(0, 5)], [(2, 5)]]
    draft(manager, running, 30)
    assert (running.length, running.num_pages) == (18, 8)
    assert held(running) == [[(0, 8)], [(2, 8)]]
    manager.commit(running, 23)
    assert (running.length, running.num_pages) == (23, 8)
    assert held(running) == [[(0, 8)], [(3, 8)]]
    # What was not accepted is written again: nothing is freed, and nothing new is needed.
    assert manager.new_pages(running, 32) == 0
    manager.check()


def test_a_tail_ends_with_its_request() -> None:
    """Of 21 tokens 5 pages are published; a window of 6 has slid past three of them before."""
    manager = make_manager(Full(), SlidingWindow(6), num_large=40, page_size=4)
    history = tokens(range(18))
    running = begin(manager, history)
    draft(manager, running, 30)
    manager.commit(running, 21)
    manager.publish(running, None, tokens(range(21)))
    assert running.tree_pages == 5
    manager.release(running)
    manager.check_idle()
    assert inside.num_in_tree(manager) == 5
    assert inside.num_free(manager) == 40 - 5 - 2
    assert hit_tokens(manager, tokens(range(40))) == 20


def test_a_retraction_in_mid_tail_leaves_nothing() -> None:
    manager = make_manager(Full(), SlidingWindow(6), num_large=40, page_size=4)
    running = begin(manager, tokens(range(18)))
    draft(manager, running, 30)
    manager.release(running)
    manager.check_idle()
    assert inside.num_free(manager) == 40


def test_drafts_that_do_not_fit_change_nothing() -> None:
    manager = make_manager(Full(), num_large=6, page_size=4)
    running = begin(manager, tokens(range(18)))
    assert not manager.reserve([(running, manager.new_pages(running, 25))])
    with pytest.raises(MemoryError):
        manager.extend_tail(running, 25)
    assert (running.length, running.num_pages) == (18, 5)
    draft(manager, running, 24)


@pytest.mark.parametrize("length", [17, 33])
def test_only_what_the_tail_has_room_for_can_be_accepted(length: int) -> None:
    manager = make_manager(Full(), num_large=40, page_size=4)
    running = begin(manager, tokens(range(18)))
    draft(manager, running, 30)
    with pytest.raises(CorruptPool, match="committed tokens"):
        manager.commit(running, length)


def test_a_prompt_that_is_not_published_yet_holds_windows_back() -> None:
    """An overlapped server drafts behind a prompt before it has been published."""
    manager = make_manager(Full(), SlidingWindow(6), num_large=40, page_size=4)
    history = tokens(range(18))
    running = begin(manager, history, publish=True)
    manager.commit(running, 18)
    draft(manager, running, 30)
    assert held(running)[1] == [(0, 8)]
    manager.publish(running, None, history)
    assert held(running)[1] == [(2, 8)]
    assert hit_tokens(manager, tokens(range(40))) == 16


def test_stats_show_room_for_drafts_and_do_not_call_it_waste() -> None:
    """18 tokens of two layers in 8 pages of 4, 8 bytes a token and layer."""
    geometry = make_geometry([Full()], 40, page_size=4, layers=[2])
    for tail_tokens, shown in ((12, "draft_bytes"), (0, "waste_bytes")):
        manager = Manager(geometry, max_requests=2, max_length=100, tail_tokens=tail_tokens)
        running = begin(manager, tokens(range(18)))
        draft(manager, running, 30)
        (group,) = pool_stats(manager)["groups"]
        sizes = {name: group[name] for name in ("draft_bytes", "waste_bytes")}
        assert sizes == {"draft_bytes": 0, "waste_bytes": 0} | {shown: 14 * 2 * 8}


# -- admission ------------------------------------------------------------------------------------


def drafting_manager(kinds: tuple[Dependency, ...], num_large: int, tail_tokens: int) -> Manager:
    layers, stripes = [2, 6, 3][: len(kinds)], [2, 2, 1][: len(kinds)]
    geometry = make_geometry(kinds, num_large, page_size=4, layers=layers, stripes=stripes)
    return Manager(geometry, max_requests=8, max_length=120, tail_tokens=tail_tokens)


def run_with_tail(manager: Manager, length: int, fresh: int) -> list[int]:
    """Compute a prompt ``fresh`` tokens at a time, and the rest of ``length`` with drafts of which
    now all, now none, now some are accepted; the most pages held in each group."""
    history, prompt = tokens(range(length)), max(1, length // 2)
    running = manager.lock(manager.miss(None))
    most = [0] * len(manager.dependencies)
    for computed in (*range(fresh, prompt, fresh), prompt):
        assert manager.reserve([(running, manager.new_pages(running, computed))]), computed
        manager.extend(running, computed)
        most = [max(pair) for pair in zip(most, held_pages(running), strict=True)]
        manager.publish(running, None, history[:computed])
    accepted = itertools.cycle((1, manager.tail_tokens, 1, 3))
    while running.length < length:
        draft(manager, running, running.length + manager.tail_tokens)
        most = [max(pair) for pair in zip(most, held_pages(running), strict=True)]
        manager.commit(
            running, min(length, running.length + min(manager.tail_tokens, next(accepted)))
        )
    manager.release(running)
    manager.check()
    return most


@pytest.mark.parametrize("tail_tokens", [2, 8, 13])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_a_request_never_holds_more_than_it_is_admitted_for(
    kinds: tuple[Dependency, ...], tail_tokens: int
) -> None:
    manager = drafting_manager(kinds, 300, tail_tokens)
    for length in (2, 6, 30, 47, 60):
        for fresh in (1, 5, 13):
            most = run_with_tail(manager, length, fresh)
            admitted = request_pages(manager, length, fresh, 0)
            assert all(h <= a for h, a in zip(most, admitted, strict=True)), (length, fresh)


@pytest.mark.parametrize("tail_tokens", [2, 8, 13])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_the_longest_request_fits_with_its_tail(
    kinds: tuple[Dependency, ...], tail_tokens: int
) -> None:
    for num_large in range(1, 14):
        manager = drafting_manager(kinds, num_large, tail_tokens)
        for fresh in (1, 8, 32):
            longest = longest_request(manager, fresh)
            if longest > 1:
                run_with_tail(manager, longest, fresh)


def test_one_token_more_than_the_longest_request_does_not_fit() -> None:
    """Ten pages of 4 are 40 tokens: 27 and a tail of 13 fill them."""
    manager = drafting_manager((Full(),), 20, 13)
    assert longest_request(manager, 8) == 27
    assert fits_alone(manager, 27, 8) and not fits_alone(manager, 28, 8)
    run_with_tail(manager, 27, 8)
    running = begin(manager, tokens(range(28)))
    assert not manager.reserve([(running, manager.new_pages(running, 28 + 13))])


def test_the_longest_that_there_may_be_is_without_its_tail() -> None:
    manager = drafting_manager((Full(),), 300, 13)
    assert longest_request(manager, 8) == 120


def test_tails_that_running_requests_lack_are_known() -> None:
    """Of 18 tokens and a tail of 13 there are 8 pages; 5 are there after the prompt."""
    manager = drafting_manager((Full(), SlidingWindow(6)), 300, 13)
    assert tails_to_come(manager) == 0
    running = begin(manager, tokens(range(18)))
    begin(manager, tokens(range(20, 40)))
    assert tails_to_come(manager) == (8 - 5) + (9 - 5)
    draft(manager, running, 18 + 13)
    assert tails_to_come(manager) == 9 - 5
    manager.lock(manager.miss(None))  # looked at, and perhaps not admitted
    assert tails_to_come(manager) == 9 - 5


def test_a_tail_is_room_to_grow_beyond_the_longest_history() -> None:
    """At most 120 tokens and 13 drafts: 30 pages and 4; a window of 6 has 3 and 4."""
    manager = drafting_manager((Full(), SlidingWindow(6)), 300, 13)
    running = begin(manager, tokens(range(18)))
    manager.slide(running, 18)
    assert growth_room(manager) == [34 - 5, 7 - 3]
