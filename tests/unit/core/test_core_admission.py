"""What the manager promises about room, against requests that are really run."""

import itertools

import pytest
from core_builders import make_manager, tokens

from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.pin import Pin

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
    pin = manager.lock(manager.miss(None))
    most = [0] * len(manager.dependencies)
    computed, steps = 0, itertools.cycle((fresh, 1))
    while computed < length:
        computed = min(length, computed + next(steps))
        assert manager.reserve([(pin, manager.new_pages(pin, computed))]), computed
        manager.extend(pin, computed)
        most = [max(pair) for pair in zip(most, held_pages(pin), strict=True)]
        manager.slide(pin, computed)
        if cache:
            manager.checkpoint(pin, None, history[:computed])
    manager.release(pin)
    manager.check()
    return most


def held_pages(pin: Pin) -> list[int]:
    return [sum(r.size for r in ranges) for ranges in pin.held]


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_a_request_never_holds_more_pages_than_it_is_admitted_for(
    kinds: tuple[Dependency, ...], page_size: int
) -> None:
    manager = make_manager(*kinds, num_large=300, page_size=page_size)
    for length in (1, 6, 30, 47, 60):
        for fresh in (1, 2, 5, 8, 13):
            held = run_in_chunks(manager, length, fresh, cache=False)
            admitted = manager.request_pages(length, fresh, 0)
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
            longest = manager.longest_request(fresh)
            if longest:
                run_in_chunks(manager, longest, fresh, cache=True)


def test_without_limits_the_longest_request_is_the_longest_there_may_be() -> None:
    manager = make_manager(SlidingWindow(5), num_large=30, page_size=4, max_length=100)
    assert manager.longest_request(8) == 100


def test_a_pinned_prefix_needs_no_room_again() -> None:
    manager = make_manager(Full(), SlidingWindow(5), num_large=300, page_size=4)
    fresh, prefix = 4, 40
    alone, after = (manager.request_pages(60, fresh, n) for n in (0, prefix))
    assert [a - b for a, b in zip(alone, after, strict=True)] == [10, 1]
