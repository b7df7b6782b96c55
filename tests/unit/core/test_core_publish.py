"""Windows slide behind what is in the tree, not behind what is only computed: an overlapped server
takes the page of the next token before it publishes the step that the token comes from."""

import core_inspector as inside
import pytest
from core_builders import begin, grow, make_geometry, make_manager, serve, tokens

from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

KINDS: list[tuple[Dependency, ...]] = [
    (Full(),),
    (SlidingWindow(5),),
    (ChunkedLocal(8),),
    (Full(), SlidingWindow(6, sink_tokens=3), ChunkedLocal(8)),
]
LONGEST = 33


def next_token(manager: Manager, running: Running) -> None:
    """Room for one more token, as the next step's batch takes it."""
    length = running.length
    if length % manager.page_size == 0:
        manager.slide(running, length)
        assert manager.reserve([(running, 1)])
        manager.extend_each([running])


def held(running: Running) -> list[int]:
    return [sum(r.size for r in ranges) for ranges in running.held]


@pytest.mark.parametrize("length", range(1, LONGEST))
@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def test_a_prompt_is_hit_as_if_it_had_been_published_at_once(
    kinds: tuple[Dependency, ...], page_size: int, length: int
) -> None:
    """Its whole pages, to any length; and the request holds no more in the end."""
    prompt = tokens(range(length))
    holds = []
    for overlapped in (False, True):
        manager = make_manager(*kinds, num_large=300, page_size=page_size)
        running = begin(manager, prompt, publish=True)
        steps = [
            lambda m=manager, p=running: m.publish(p, None, prompt),
            lambda m=manager, p=running: next_token(m, p),
        ]
        for step in reversed(steps) if overlapped else steps:
            step()
        manager.check()
        for end in range(length + 1):
            hit = manager.match(None, prompt[:end])
            assert hit.path.num_pages == end // page_size
        holds.append(held(running))
        manager.release(running)
        manager.check_idle()
    assert holds[0] == holds[1]


def waiting(num_large: int) -> tuple[Manager, Running]:
    """A prompt of 16 tokens in four pages, of which a window of 4 needs the last; it is not
    published yet."""
    manager = make_manager(SlidingWindow(4), num_large=num_large, page_size=4)
    running = begin(manager, tokens(range(16)), publish=True)
    manager.slide(running, 16)
    assert held(running) == [4]
    return manager, running


def test_what_waits_to_be_published_gives_way() -> None:
    manager, running = waiting(num_large=4)
    assert manager.make_way(1)
    assert held(running) == [1]
    assert manager.reserve([(running, 3)]), "the other three pages are free"


def test_it_waits_only_where_there_is_room() -> None:
    manager, running = waiting(num_large=5)
    assert manager.reserve([(running, 1)]) and held(running) == [4]
    manager.extend_each([running])
    manager.publish(running, None, tokens(range(16)))
    assert held(running) == [2]
    assert manager.match(None, tokens(range(15))).path.num_pages == 3


def test_it_does_not_wait_twice() -> None:
    """Whoever slides on without publishing leaves nothing."""
    manager, running = waiting(num_large=9)
    grow(manager, running, 20)
    manager.slide(running, 16)
    assert held(running) == [5], "the same slide again"
    manager.slide(running, 20)
    assert held(running) == [1]


def test_who_publishes_a_part_waits_with_the_rest() -> None:
    manager, running = waiting(num_large=9)
    manager.publish(running, None, tokens(range(8)))
    assert held(running) == [3]
    manager.publish(running, None, tokens(range(16)))
    assert held(running) == [1]


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_nothing_waits_that_is_never_published(prefix_cache: bool) -> None:
    manager = make_manager(SlidingWindow(4), num_large=9, page_size=4)
    manager.prefix_cache = prefix_cache
    running = begin(manager, tokens(range(16)), publish=not prefix_cache)
    manager.slide(running, 16)
    assert held(running) == [1]


def test_who_ends_without_publishing_leaves_nothing() -> None:
    manager, running = waiting(num_large=4)
    manager.release(running)
    manager.check_idle()
    assert inside.num_free(manager) == 4


def test_a_history_that_others_left_is_held_for_them_all_the_same() -> None:
    """The point where a prompt left a known history is a shared length once it is published."""
    document, holds = tokens(range(12)), []
    for overlapped in (False, True):
        geometry = make_geometry([SlidingWindow(6)], 60, page_size=4)
        policy = CachePolicy(step_cost_tokens=0)
        manager = Manager(geometry, max_requests=8, max_length=1000, policy=policy)
        serve(manager, tokens(document, range(100, 120)))
        manager.evict(1000)
        serve(manager, tokens(document, range(100, 120)))
        prompt = tokens(document[:8], range(200, 224))
        running = begin(manager, prompt, publish=True)
        if overlapped:
            next_token(manager, running)
        manager.publish(running, None, prompt)
        if not overlapped:
            next_token(manager, running)
        holds.append(running.held_for_others)
        manager.check()
    assert holds[0] == holds[1]
    assert any(holds[0]), "nothing is held for others"


def test_windows_slide_on_once_what_they_waited_for_is_published() -> None:
    """Also to a token that was computed after it."""
    holds = []
    for overlapped in (False, True):
        manager = make_manager(SlidingWindow(3), num_large=20)
        running = begin(manager, tokens(range(4)), publish=True)
        if not overlapped:
            manager.publish(running, None, tokens(range(4)))
        grow(manager, running, 5)
        manager.slide(running, 5)
        if overlapped:
            assert held(running) == [5], "nothing goes before it is published"
            manager.publish(running, None, tokens(range(4)))
        holds.append(held(running))
    assert holds[0] == holds[1] == [2]
