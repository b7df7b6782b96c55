"""Layer groups that are born and retired while a pool is in use."""

import core_inspector as inside
import pytest
from core_builders import UNIT_BYTES, begin, grow, hit_tokens, make_manager, serve, tokens

from jenga_sglang.core.admission import longest_request, request_pages, step_pages
from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow
from jenga_sglang.core.live_groups import register_group, retire_group
from jenga_sglang.core.manager import Manager

A = tokens(range(100, 108))


def make(num_large: int = 60) -> Manager:
    return make_manager(Full(), SlidingWindow(3), num_large=num_large)


def adapter(k_bytes: int = UNIT_BYTES, *, window: int = 0) -> GroupGeometry:
    """A group of one more layer, everything or a window."""
    dependency = SlidingWindow(window) if window else Full()
    return GroupGeometry(LayerGroupSpec("adapter", (9,), dependency, k_bytes, 0), 1)


def test_a_new_group_takes_nothing_until_a_request_begins() -> None:
    manager = make()
    running = begin(manager, A)
    free = inside.num_free(manager)
    group = register_group(manager, adapter())
    assert (group, inside.num_free(manager)) == (2, free)
    grow(manager, running, 12)
    later = begin(manager, tokens(200, A))
    assert inside.num_used(manager) == [12 + 9, 12 + 9, 9]
    assert inside.num_free(manager) == free - 2 * 4 - 3 * 9
    manager.check()
    manager.release(running)
    manager.release(later)
    manager.check_idle()


def test_requests_from_before_and_after_a_birth_open_pages_together() -> None:
    manager = make()
    early = begin(manager, A)
    register_group(manager, adapter())
    late = begin(manager, tokens(200, A))
    assert manager.reserve([(early, 1), (late, 1)])
    assert manager.extend_each([early, late]).tolist() == [early.row[-1], late.row[-1]]
    assert (early.length, late.length) == (9, 10)
    assert inside.num_used(manager) == [9 + 10, 9 + 10, 10]
    manager.check()


def test_what_was_cached_before_is_a_hit_again_once_the_group_has_its_part() -> None:
    manager = make()
    serve(manager, A)
    group = register_group(manager, adapter())
    hit = manager.match(None, A)
    assert (hit.path.num_pages, hit.matched_pages, hit.cut_by) == (0, 8, group)
    serve(manager, A)
    assert hit_tokens(manager, A) == 8
    assert inside.num_held(manager)[0] == 8, "the other groups keep one copy"
    manager.check()


def test_a_retired_group_gives_every_page_back() -> None:
    manager = make()
    group = register_group(manager, adapter(window=4))
    serve(manager, A)
    owned = inside.num_owned(manager)[group]
    free = inside.num_free(manager)
    assert owned > 0
    retire_group(manager, group)
    manager.check_idle()
    assert inside.num_owned(manager)[group] == 0
    assert inside.num_free(manager) == free + owned
    assert hit_tokens(manager, A) == 8, "the others keep what they have"
    serve(manager, tokens(A, 1, 2))
    assert inside.num_held(manager)[group] == 0


def test_a_group_may_come_again_and_nothing_of_the_first_is_left() -> None:
    manager = make()
    retire_group(manager, register_group(manager, adapter()))
    group = register_group(manager, adapter())
    serve(manager, A)
    assert (group, inside.num_held(manager)) == (3, [8, 8, 0, 8])
    manager.reset()
    serve(manager, A)
    assert inside.num_held(manager) == [8, 8, 0, 8]
    manager.check_idle()


def test_the_pool_may_end_with_other_groups_than_it_began_with() -> None:
    manager = make()
    serve(manager, A)
    group = register_group(manager, adapter())
    for first in (0, 1):
        retire_group(manager, first)
    serve(manager, A)
    assert inside.num_held(manager) == [0, 0, 8]
    assert hit_tokens(manager, A) == 8
    retire_group(manager, group)
    assert inside.num_free(manager) == inside.num_large(manager)
    assert inside.num_free_ids(manager) == inside.num_ids(manager)


def test_a_group_in_use_is_not_retired() -> None:
    manager = make()
    running = begin(manager, A)
    with pytest.raises(ValueError, match="in use by 1 running"):
        retire_group(manager, 0)
    manager.release(running)
    retire_group(manager, 0)
    with pytest.raises(ValueError, match="not a group of rows in use"):
        retire_group(manager, 0)


def test_a_request_that_began_before_needs_no_room_in_the_new_group() -> None:
    """Of 20 pages the request has 16; two more in each of its two groups are all there is."""
    manager = make(20)
    running = begin(manager, A)
    register_group(manager, adapter())
    assert manager.reserve([(running, 2)])
    assert not manager.reserve([(running, 3)])
    later = manager.lock(manager.miss(None))
    assert manager.reserve([(later, 1)])
    assert not manager.reserve([(later, 2)])


def test_admission_counts_the_groups_of_now() -> None:
    manager = make(90)
    assert longest_request(manager, 1) > 40
    group = register_group(manager, adapter())
    assert len(request_pages(manager, 10, 10, 0)) == 3
    retire_group(manager, group)
    assert request_pages(manager, 10, 10, 0)[group] == 0
    assert step_pages(manager, 1) == [1, 1, 0]


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (adapter(3 * UNIT_BYTES), "does not divide"),
        (
            GroupGeometry(LayerGroupSpec("s", (9,), LastState(), state_bytes=(8,)), 1),
            "states must be there",
        ),
        (GroupGeometry(LayerGroupSpec("a", (9,), Full(), 2, 2), 2), "one page_size"),
    ],
)
def test_a_group_that_does_not_fit_the_pool_is_refused(cut: GroupGeometry, why: str) -> None:
    manager = make()
    with pytest.raises(ValueError, match=why):
        register_group(manager, cut)
    assert len(manager.dependencies) == 2
    serve(manager, A)
    manager.check_idle()
