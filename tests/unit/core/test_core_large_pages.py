"""Large pages move between groups, small pages live inside them: exact orders and counts.

Two groups of two and three layers: a small page of group 0 is a third of a large page, one of
group 1 is half. Large page n holds the small pages 3n, 3n + 1, 3n + 2 or 2n, 2n + 1.
"""

import numpy as np
import pytest
from core_builders import ids, make_geometry

from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.books.large_pages import LargePages
from jenga_sglang.core.dependency import Full

A, B = 1, 2  # requests


@pytest.fixture
def large() -> LargePages:
    """Four large pages."""
    geometry = make_geometry([Full(), Full()], 4, layers=[2, 3])
    assert (geometry.small_per_large(0), geometry.small_per_large(1)) == (3, 2)
    return LargePages(geometry)


def take(large: LargePages, group: int, count: int, request: int, scarce: bool = False) -> set[int]:
    taken = large.take(group, count, request, scarce=scarce)[0].tolist()
    assert len(set(taken)) == len(taken) == count
    large.check()
    return set(taken)


def free_used(large: LargePages, group: int, *small: int) -> list[int]:
    idle = large.free_used(group, ids(*small)).tolist()
    large.check()
    return idle


def cache(large: LargePages, group: int, *small: int) -> list[int]:
    idle = large.cache(group, ids(*small)).tolist()
    large.check()
    return idle


def test_the_first_page_is_not_of_the_reserved_large_page(large: LargePages) -> None:
    assert take(large, 0, 1, A) == {3}
    assert take(large, 1, 1, A) == {4}


def test_a_request_fills_its_own_large_page_first(large: LargePages) -> None:
    assert take(large, 0, 2, A) == {3, 4}
    assert take(large, 0, 1, B) == {6}
    assert take(large, 0, 1, A) == {5}


def test_another_request_prefers_a_free_large_page_to_a_hole(large: LargePages) -> None:
    take(large, 0, 1, A)
    assert take(large, 0, 1, B) == {6}
    assert large.num_free == 2


def test_without_a_free_large_page_it_takes_the_holes_of_others(large: LargePages) -> None:
    take(large, 0, 1, A)
    take(large, 1, 6, A)
    assert large.num_free == 0
    assert take(large, 0, 2, B) == {4, 5}


def test_a_scarce_pool_fills_the_holes_of_others_before_a_free_large_page(
    large: LargePages,
) -> None:
    take(large, 0, 2, A)
    assert take(large, 0, 2, B, scarce=True) == {5, 6}
    assert large.num_free == 2


def test_own_holes_come_first_in_a_scarce_pool_too(large: LargePages) -> None:
    take(large, 0, 1, A)
    take(large, 0, 1, B)
    assert take(large, 0, 2, B, scarce=True) == {7, 8}


def test_one_demand_runs_through_own_holes_free_large_pages_and_holes_of_others(
    large: LargePages,
) -> None:
    take(large, 0, 1, A)
    take(large, 0, 2, B)
    take(large, 1, 2, A)
    assert take(large, 0, 5, B) == {8, 12, 13, 14, 5}
    assert large.num_free == 0


def test_a_large_page_is_free_the_moment_its_last_small_page_is(large: LargePages) -> None:
    take(large, 0, 3, A)
    assert free_used(large, 0, 3) == []
    assert free_used(large, 0, 4) == []
    assert (large.num_free, large.num_owned[0]) == (3, 1)
    assert free_used(large, 0, 5) == []
    assert (large.num_free, large.num_owned[0]) == (4, 0)


def test_a_large_page_goes_to_another_group_when_it_is_free(large: LargePages) -> None:
    take(large, 0, 12, A)
    free_used(large, 0, 6, 7, 8)
    assert take(large, 1, 2, B) == {4, 5}
    assert large.owner.tolist() == [-2, 0, 1, 0, 0]


def test_small_pages_of_several_large_pages_are_freed_at_once(large: LargePages) -> None:
    take(large, 0, 9, A)
    free_used(large, 0, 3, 4, 5, 6, 9, 10)
    assert (large.num_free, large.num_owned[0], large.num_holes(0)) == (2, 2, 3)


def test_a_cached_page_keeps_its_large_page(large: LargePages) -> None:
    take(large, 0, 2, A)
    assert cache(large, 0, 3) == []
    assert free_used(large, 0, 4) == [1], "nothing used is left, but a cached page is"
    assert (large.num_free, large.num_reclaimable[0]) == (3, 1)
    large.free_cached(0, ids(3))
    large.check()
    assert (large.num_free, large.num_reclaimable[0]) == (4, 0)


def test_caching_names_the_large_pages_in_which_nothing_is_used(large: LargePages) -> None:
    take(large, 0, 6, A)
    assert cache(large, 0, 3, 4, 5, 6) == [1]
    assert cache(large, 0, 7, 8) == [2]


def test_a_cached_page_that_is_used_again_is_not_reclaimable(large: LargePages) -> None:
    take(large, 0, 1, A)
    cache(large, 0, 3)
    large.use(0, ids(3))
    large.check()
    assert (large.num_used[0], large.num_reclaimable[0]) == (1, 0)


def test_a_hole_in_a_cached_large_page_makes_it_used_again(large: LargePages) -> None:
    take(large, 0, 1, A)
    cache(large, 0, 3)
    assert take(large, 0, 1, A) == {5}
    assert large.num_reclaimable[0] == 0
    assert large.mixed(0) == [1]


def test_mixed_large_pages_come_in_the_order_in_which_they_became_mixed(large: LargePages) -> None:
    take(large, 0, 9, A)
    cache(large, 0, 6)
    cache(large, 0, 3)
    assert large.mixed(0) == [2, 1]
    cache(large, 0, 7, 8)
    assert large.mixed(0) == [1]


def test_too_large_a_demand_raises_and_changes_nothing(large: LargePages) -> None:
    take(large, 0, 4, A)
    take(large, 1, 3, B)
    cache(large, 0, 3)
    before = [large.owner.tolist(), large.used.tolist(), large.held.tolist(), large.num_free]
    with pytest.raises(MemoryError, match="never reserved"):
        large.take(0, 3, A)
    large.check()
    after = [large.owner.tolist(), large.used.tolist(), large.held.tolist(), large.num_free]
    assert after == before
    assert take(large, 0, 2, A) == {7, 8}, "what was free can still be taken"


def test_missing_large_pages_count_holes_but_nothing_cached(large: LargePages) -> None:
    """Holes: two for group 0, one for group 1; two large pages free."""
    take(large, 0, 1, A)
    take(large, 1, 1, A)
    assert large.shortfall([2, 1]) == -2
    assert large.shortfall([3, 1]) == -1
    assert large.shortfall([3, 2]) == 0
    assert large.shortfall([6, 2]) == 1
    cache(large, 0, 3)
    assert large.shortfall([6, 2]) == 1


def test_what_is_cached_counts_as_room(large: LargePages) -> None:
    """Group 0 holds two large pages, group 1 two; all of it is used."""
    take(large, 0, 6, A)
    take(large, 1, 4, A)
    assert large.can_serve([0, 0])
    assert not large.can_serve([1, 0])
    cache(large, 0, 3)
    assert large.can_serve([1, 0]), "in the place of the cached page"
    assert not large.can_serve([0, 1]), "its large page is still used"
    cache(large, 0, 4, 5)
    assert large.can_serve([3, 0])
    assert large.can_serve([0, 2])
    assert not large.can_serve([1, 2])


def test_small_pages_of_the_size_of_a_large_page_leave_no_holes() -> None:
    large = LargePages(make_geometry([Full(), Full()], 3))
    assert take(large, 0, 2, A) == {1, 2}
    assert take(large, 1, 1, A) == {3}
    assert cache(large, 0, 1) == [1]
    assert free_used(large, 0, 2) == []
    assert (large.num_holes(0), large.num_free, large.num_reclaimable) == (0, 1, [1, 0])
    assert take(large, 1, 1, A) == {2}
    assert large.mixed(0) == large.mixed(1) == []


def test_taking_nothing_changes_nothing(large: LargePages) -> None:
    assert take(large, 0, 0, A) == set()
    assert large.num_free == 4


def test_check_notices_a_page_that_was_freed_twice(large: LargePages) -> None:
    taken, _ = large.take(0, 3, A)
    large.free_used(0, taken[:1])
    large.free_used(0, taken[:1])
    with pytest.raises(
        CorruptPool,
        match="holes",
    ):
        large.check()


def test_check_notices_a_wrong_counter(large: LargePages) -> None:
    large.take(0, 2, A)
    large.num_used = [1, 0]
    with pytest.raises(CorruptPool, match="group 0: used small pages: 1 in the books, 2 recounted"):
        large.check()


def test_check_notices_a_lost_large_page(large: LargePages) -> None:
    large.num_free -= 1
    with pytest.raises(CorruptPool, match="free or owned: 3 in the books, 4 recounted"):
        large.check()


def test_ids_are_of_the_type_that_numpy_indexes_with(large: LargePages) -> None:
    assert large.take(0, 4, A)[0].dtype == np.intp


@pytest.mark.parametrize("scarce", [False, True])
@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (2, 1), (1, 2), (2, 2)])
def test_a_few_pages_for_each_of_many_are_those_that_each_would_take(
    counts: tuple[int, int], scarce: bool
) -> None:
    """With holes of every kind: own ones, others', and large pages that open on the way."""
    geometry = make_geometry([Full(), Full(), Full()], 40, layers=[2, 3, 6])
    one_by_one, at_once = LargePages(geometry), LargePages(geometry)
    for books in (one_by_one, at_once):
        for group, count, request in ((0, 4, 1), (1, 3, 2), (0, 1, 3), (2, 2, 1), (1, 1, 9)):
            books.take(group, count, request)
    wanted, requests = [(0, counts[0]), (1, counts[1]), (2, 1)], [1, 2, 3, 9, 4]
    small: list[list[int]] = [[], [], []]
    opened: list[list[int]] = [[], [], []]
    for request in requests:
        for group, count in wanted:
            ids_taken, large = one_by_one.take(group, count, request, scarce=scarce)
            small[group] += ids_taken.tolist()
            opened[group] += large.tolist()
    taken = at_once.take_each(wanted, requests, scarce=scarce)
    at_once.check()
    assert taken == list(zip(small, opened, strict=True))
    for name in ("owner", "used", "held"):
        assert (getattr(at_once, name) == getattr(one_by_one, name)).all()
    for name in ("num_free", "num_owned", "num_used", "num_held"):
        assert getattr(at_once, name) == getattr(one_by_one, name)


def test_many_pages_of_several_large_pages_change_at_once() -> None:
    geometry = make_geometry([Full(), Full()], 12, layers=[2, 3])
    large = LargePages(geometry)
    taken, opened = large.take(0, 14, A)
    assert large.cache(0, taken[:13]).tolist() == opened[:4].tolist()
    large.check()
    assert (large.num_used[0], large.num_reclaimable[0]) == (1, 4)
    large.use(0, taken[2:12])
    large.check()
    assert (large.num_used[0], large.num_reclaimable[0]) == (11, 0)
    large.cache(0, taken[2:12])
    large.free_cached(0, taken[:11])
    large.check()
    assert (large.num_held[0], large.num_owned[0]) == (3, 2)


def test_no_pages_are_ids_too(large: LargePages) -> None:
    assert large.take(0, 0, A)[0].dtype == np.intp
