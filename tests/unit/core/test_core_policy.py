"""What the prefix cache keeps beyond the end of a history, and how each choice is switched off."""

import core_inspector as inside
import pytest
from core_builders import (
    begin,
    held_pages,
    hit_tokens,
    make_geometry,
    make_manager,
    serve,
    tokens,
)

from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.lookahead import Lookahead
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

A = tokens(range(100, 112))
FORK = tokens(A[:6], range(200, 206))
OTHER_FORK = tokens(A[:6], range(300, 306))


def make(policy: CachePolicy) -> Manager:
    """Full attention and a window that reads two earlier tokens."""
    geometry = make_geometry([Full(), SlidingWindow(3)], 80)
    return Manager(geometry, max_requests=8, max_length=1000, policy=policy)


def evict_transient(manager: Manager) -> None:
    """Evict all that was never meant to be hit."""
    while (inside.times(manager)[inside.idle_large(manager)] == 0).any():
        inside.evict_large(manager, 1)
    manager.check()


@pytest.mark.parametrize(("keep_branches", "hit"), [(True, 6), (False, 0)])
def test_a_branch_point_is_kept_from_the_first_fork_on(keep_branches: bool, hit: int) -> None:
    """A's window is kept at its end only, so the first fork finds nothing and computes the six
    shared tokens again. It has shown where prompts part, and the second fork can continue there."""
    manager = make(CachePolicy(keep_branches=keep_branches))
    serve(manager, A)
    evict_transient(manager)
    assert hit_tokens(manager, FORK) == 0
    serve(manager, FORK)
    evict_transient(manager)
    assert hit_tokens(manager, OTHER_FORK) == hit
    assert hit_tokens(manager, FORK) == hit_tokens(manager, A) == 12


def test_a_history_that_merely_goes_on_is_no_branch() -> None:
    """The window at the end of A is gone, so what goes on from A hits nothing; a fork does neither,
    but it parts from A where others may part as well."""
    manager = make(CachePolicy())
    serve(manager, A)
    pages = inside.path_pages(manager, manager.match(None, A).path)
    evict_transient(manager)
    inside.evict_pages(manager, 1, pages[-2:])
    goes_on = manager.match(None, tokens(A, range(500, 506)))
    forks = manager.match(None, FORK)
    assert (goes_on.path.num_pages, goes_on.matched_pages) == (0, 12)
    assert (forks.path.num_pages, forks.matched_pages) == (0, 6)
    assert not manager.lock(goes_on).branch_ahead
    assert manager.lock(forks).branch_ahead


def test_the_windows_of_the_lengths_to_keep_stay_and_those_between_go_first() -> None:
    manager = make(CachePolicy())
    running = begin(manager, A)
    manager.publish(running, None, A, keep=[4, 12])
    manager.release(running)
    evict_transient(manager)
    assert held_pages(manager, 0, A) == list(range(12))
    assert held_pages(manager, 1, A) == [2, 3, 10, 11]
    assert [hit_tokens(manager, A[:n]) for n in (3, 4, 5, 11, 12)] == [0, 4, 4, 4, 12]


def test_nothing_to_keep_is_the_first_to_go() -> None:
    manager = make(CachePolicy())
    running = begin(manager, A)
    manager.publish(running, None, A, keep=[])
    manager.release(running)
    evict_transient(manager)
    assert held_pages(manager, 1, A) == []


def window_alone(
    num_large: int, *, mean_decode_steps: float = 24, hold_hits: bool = True
) -> tuple[Manager, Running]:
    """A request that left a known history after six tokens, has computed twelve, and needs the
    last two of them. To hold two pages more saves six tokens and is worth it, beside the eight
    pages in use and at a token a step, up to answers of 6 · 8 / 2 tokens."""
    policy = CachePolicy(step_cost_tokens=1, hold_hits=hold_hits)
    geometry = make_geometry([SlidingWindow(3)], num_large)
    manager = Manager(geometry, max_requests=8, max_length=1000, policy=policy)
    manager.counters.mean_decode_steps = mean_decode_steps
    serve(manager, tokens(A[:6], [900]))
    running = begin(manager, A)
    assert running.hit.path.num_pages == 6
    manager.slide(running, 12)
    manager.check()
    return manager, running


def test_a_history_that_just_went_on_is_not_held_for_others() -> None:
    """Nobody has come by another way, so nobody is expected to: a conversation, not a document."""
    geometry = make_geometry([SlidingWindow(3)], 20)
    manager = Manager(geometry, max_requests=8, max_length=1000)
    serve(manager, A[:6])
    running = begin(manager, A)
    manager.slide(running, 12)
    assert inside.num_used(manager) == [2]


@pytest.mark.parametrize(
    ("mean_decode_steps", "hold_hits", "used"), [(24, True, 2 + 2), (25, True, 2), (24, False, 2)]
)
def test_a_running_request_holds_the_hit_that_it_used_where_that_pays(
    mean_decode_steps: float, hold_hits: bool, used: int
) -> None:
    """The next asker needs tokens 4 and 5."""
    manager, running = window_alone(20, mean_decode_steps=mean_decode_steps, hold_hits=hold_hits)
    assert inside.num_used(manager) == [used]
    manager.release(running)
    manager.check()
    assert inside.num_used(manager) == [0]


@pytest.mark.parametrize(("mean_decode_steps", "used"), [(96, 4), (97, 2)])
def test_what_is_held_is_weighed_in_large_pages(mean_decode_steps: int, used: int) -> None:
    """Two pages of the window are one large page; in use are four of these and twelve of the full
    group. To hold them pays up to answers of 6 · 16 / 1 tokens."""
    geometry = make_geometry([SlidingWindow(3), Full()], 40, layers=[1, 2])
    policy = CachePolicy(step_cost_tokens=1)
    manager = Manager(geometry, max_requests=8, max_length=1000, policy=policy)
    manager.counters.mean_decode_steps = mean_decode_steps
    serve(manager, tokens(A[:6], [900]))
    running = begin(manager, A)
    assert inside.num_used(manager) == [8, 12]
    manager.slide(running, 12)
    assert inside.num_used(manager) == [used, 12]


def test_what_is_held_for_others_is_given_up_when_a_reservation_would_fail() -> None:
    """Of twelve pages the request needs two and holds two more."""
    manager, _ = window_alone(12)
    other = manager.lock(manager.miss(None))
    assert manager.reserve([(other, 8)])
    assert hit_tokens(manager, A[:6]) == 6
    assert manager.reserve([(other, 9)])
    manager.check()
    assert hit_tokens(manager, A[:6]) < 6
    assert manager.reserve([(other, 10)])
    assert not manager.reserve([(other, 11)])


@pytest.mark.parametrize("waiting_prefixes", [True, False])
def test_a_waiting_request_keeps_its_prefix(waiting_prefixes: bool) -> None:
    """A is older than B, but somebody waits for A."""
    manager = make(CachePolicy(waiting_prefixes=waiting_prefixes))
    other = tokens(range(400, 412))
    serve(manager, A)
    serve(manager, other)
    evict_transient(manager)
    Lookahead(manager).look(["waits"], lambda index: (None, tokens(A, 999)))
    manager.evict(12)
    survivor, victim = (A, other) if waiting_prefixes else (other, A)
    assert hit_tokens(manager, survivor) == 12
    assert hit_tokens(manager, victim) == 0


def test_policies_are_read_from_text() -> None:
    assert CachePolicy.parse("") == CachePolicy()
    assert CachePolicy.parse("keep_branches=off") == CachePolicy(keep_branches=False)
    parsed = CachePolicy.parse("prompt_slack_tokens=64,waiting_prefixes=off,keep_branches=on")
    assert parsed == CachePolicy(64, keep_branches=True, waiting_prefixes=False)


@pytest.mark.parametrize("text", ["unknown=1", "prompt_slack_tokens=many"])
def test_a_policy_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown policy|invalid literal"):
        CachePolicy.parse(text)


def test_without_a_prefix_cache_policies_do_nothing() -> None:
    geometry = make_manager(Full(), num_large=20).geometry
    manager = Manager(geometry, max_requests=2, max_length=100, prefix_cache=False)
    Lookahead(manager).look(["waits"], lambda index: (None, A))
    serve(manager, A)
    assert inside.num_held(manager) == [0]


def thirds(num_large: int, **policy: bool) -> Manager:
    """Two full groups, a token a page: a large page holds three tokens of the one, or one of the
    other."""
    geometry = make_geometry([Full(), Full()], num_large, layers=[1, 3])
    return Manager(geometry, max_requests=8, max_length=1000, policy=CachePolicy(**policy))


@pytest.mark.parametrize(("request_aware", "large_pages"), [(True, 2), (False, 1)])
def test_requests_keep_to_large_pages_of_their_own(request_aware: bool, large_pages: int) -> None:
    manager = thirds(20, request_aware=request_aware)
    begin(manager, A[:1])
    begin(manager, FORK[:1] + 1)
    assert inside.num_owned(manager) == [large_pages, 2]


@pytest.mark.parametrize("whole", [True, False])
def test_whole_large_pages_go_before_pages_beside_used_ones(whole: bool) -> None:
    """A request runs in a hole beside two cached tokens of A. It needs one more, and C, which is
    older than A, fills large pages alone."""
    manager = thirds(8, request_aware=False, whole_large_pages=whole)
    a, c = tokens(range(2)), tokens(range(50, 53))
    serve(manager, c)
    serve(manager, a)
    runs = begin(manager, tokens(99))
    assert inside.num_free(manager) == 0
    assert manager.reserve([(runs, 1)])
    manager.check()
    assert hit_tokens(manager, a) == (2 if whole else 0)
    assert (hit_tokens(manager, c) == 3) is not whole


@pytest.mark.parametrize("balanced", [True, False])
def test_what_a_request_needs_has_one_time_in_every_group(balanced: bool) -> None:
    manager = make(CachePolicy(balanced=balanced))
    serve(manager, A)
    times = inside.times(manager)
    last = [set(times[inside.owned_large(manager, g)].tolist()) - {0} for g in (0, 1)]
    assert (last[0] == last[1]) is balanced


@pytest.mark.parametrize(("aligned", "left"), [(True, 11), (False, 0)])
def test_the_end_of_a_prefix_goes_first(aligned: bool, left: int) -> None:
    geometry = make_geometry([Full()], 20)
    policy = CachePolicy(aligned=aligned)
    manager = Manager(geometry, max_requests=8, max_length=1000, policy=policy)
    serve(manager, A)
    inside.evict_large(manager, 1)
    assert hit_tokens(manager, A) == left


def test_a_negative_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="step_cost_tokens=-1 is negative"):
        CachePolicy.parse("step_cost_tokens=-1")
