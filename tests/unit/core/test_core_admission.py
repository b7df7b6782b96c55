"""What the manager promises about room, against requests that are really run."""

import itertools

import core_inspector as inside
import pytest
from core_builders import begin, make_manager, tokens

from jenga_sglang.core.admission import (
    fits_alone,
    fleeting_share,
    growth_room,
    longest_prompt,
    longest_request,
    request_pages,
    whole_tokens_left,
)
from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running
from jenga_sglang.core.stats import used_share

KINDS = [
    (Full(),),
    (SlidingWindow(9),),
    (SlidingWindow(2, sink_tokens=1),),
    (SlidingWindow(7, sink_tokens=6),),
    (ChunkedLocal(10),),
    (Full(), SlidingWindow(6), ChunkedLocal(8)),
    (SlidingWindow(5), SlidingWindow(40)),
]


def run_in_chunks(manager: Manager, length: int, fresh: int, *, cache: bool) -> list[int]:
    """Compute ``length`` tokens, ``fresh`` or one at a time in turn, so that steps end anywhere in
    a page; the most pages held in each group."""
    history = tokens(range(length))
    running = manager.lock(manager.miss(None))
    most = [0] * len(manager.dependencies)
    computed, steps = 0, itertools.cycle((fresh, 1))
    while computed < length:
        computed = min(length, computed + next(steps))
        assert manager.reserve([(running, manager.new_pages(running, computed))]), computed
        manager.extend(running, computed)
        most = [max(pair) for pair in zip(most, held_pages(running), strict=True)]
        manager.slide(running, computed)
        if cache:
            manager.publish(running, None, history[:computed])
    manager.release(running)
    manager.check()
    return most


def held_pages(running: Running) -> list[int]:
    return [sum(r.size for r in ranges) for ranges in running.held]


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_a_request_never_holds_more_pages_than_it_is_admitted_for(
    kinds: tuple[Dependency, ...], page_size: int
) -> None:
    manager = make_manager(*kinds, num_large=300, page_size=page_size)
    for length in (1, 6, 30, 47, 60):
        for fresh in (1, 2, 5, 8, 13):
            held = run_in_chunks(manager, length, fresh, cache=False)
            admitted = request_pages(manager, length, fresh, 0)
            assert all(h <= a for h, a in zip(held, admitted, strict=True)), (length, fresh)


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_the_longest_request_fits_alone(kinds: tuple[Dependency, ...]) -> None:
    layers, stripes = [2, 6, 3][: len(kinds)], [2, 2, 1][: len(kinds)]
    for num_large in range(1, 12):
        manager = make_manager(
            *kinds,
            num_large=num_large,
            page_size=4,
            layers=layers,
            stripes=stripes,
            max_length=120,
        )
        for fresh in (1, 8, 32):
            longest = longest_request(manager, fresh)
            if longest:
                run_in_chunks(manager, longest, fresh, cache=True)


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_the_longest_prompt_is_the_last_that_fits_computed_as_it_would_be(
    kinds: tuple[Dependency, ...],
) -> None:
    for num_large in range(1, 12):
        manager = make_manager(*kinds, num_large=num_large, page_size=4, max_length=120)
        for step in (8, 32, 1000):
            prompts = range(1, manager.max_length)
            fitting = [n for n in prompts if fits_alone(manager, n + 1, min(n, step))]
            assert longest_prompt(manager, step) == max(fitting, default=0)


def test_without_limits_the_longest_request_is_the_longest_there_may_be() -> None:
    manager = make_manager(SlidingWindow(5), num_large=30, page_size=4, max_length=100)
    assert longest_request(manager, 8) == 100


def test_a_pinned_prefix_needs_no_room_again() -> None:
    manager = make_manager(Full(), SlidingWindow(5), num_large=300, page_size=4)
    fresh, prefix = 4, 40
    alone, after = (request_pages(manager, 60, fresh, n) for n in (0, prefix))
    assert [a - b for a, b in zip(alone, after, strict=True)] == [10, 1]


def test_running_requests_may_grow_until_each_holds_the_most_that_it_ever_will() -> None:
    """Of at most 100 tokens in pages of 4: 25 pages of full attention, and 3 of a window of 6."""
    manager = make_manager(Full(), SlidingWindow(6), num_large=300, page_size=4, max_length=100)
    assert growth_room(manager) == [0, 0]
    for length in (8, 20):
        running = begin(manager, tokens(range(length)))
        manager.slide(running, length)
    assert [held_pages(running) for running in manager.running.values()] == [[2, 2], [5, 2]]
    assert growth_room(manager) == [(25 - 2) + (25 - 5), (3 - 2) + (3 - 2)]


def test_tokens_left_are_those_that_every_group_could_hold() -> None:
    """Ten large pages of two small pages of full or one of the window, three of them used."""
    manager = make_manager(Full(), SlidingWindow(50), num_large=10, page_size=4, layers=[1, 2])
    begin(manager, tokens(range(5)))
    assert inside.num_free(manager) == 7
    # Seven large pages are 14 units, and a page of both groups takes three.
    assert whole_tokens_left(manager, [0, 0]) == 14 // 3 * 4
    assert whole_tokens_left(manager, [2, 1]) == 10 // 3 * 4
    assert used_share(manager) == 6 / 20


def test_a_hit_before_the_end_of_a_prompt_is_kept_possible_where_that_is_cheap() -> None:
    """A window of the same rows: a twentieth of the prompt, at most the policy's number."""
    manager = make_manager(Full(), SlidingWindow(6), num_large=30)
    assert [manager.prompt_slack(n) for n in (0, 100, 5_120, 100_000)] == [0, 5, 256, 256]
    many_layers = make_manager(Full(), SlidingWindow(6), num_large=30, layers=[1, 5])
    assert many_layers.prompt_slack(5_000) == 50
    assert make_manager(Full(), num_large=30).prompt_slack(5_000) == 0


def test_what_a_chunk_takes_for_one_step_only_is_what_will_be_forgotten() -> None:
    """40 tokens are ten pages: five large pages in the window's group, ten in that of chunks, and
    in the full one they stay."""
    kinds = (Full(), SlidingWindow(6), ChunkedLocal(8))
    manager = make_manager(*kinds, num_large=60, page_size=4, layers=[1, 1, 2])
    assert fleeting_share(manager, 40) == (5 + 10) / 60
    assert fleeting_share(make_manager(Full(), num_large=60), 40) == 0
