"""Buckets of large pages with equal logical times."""

import numpy as np
import pytest
from core_builders import ids

from jenga_sglang.core.books.lru import Candidates, LruBuckets
from jenga_sglang.core.ids import Ids


def all_idle(large: Ids) -> np.ndarray:
    return np.ones(len(large), np.bool_)


def candidates(depth: dict[int, int] | None = None) -> Candidates:
    """Idle pages at these depths, or 0."""
    return Candidates(lambda large: ids(*((depth or {}).get(p, 0) for p in large)), all_idle)


def pop(lru: LruBuckets, wanted: int = 99) -> list[int] | None:
    oldest = lru.pop_oldest(wanted, candidates())
    if oldest is None:
        return None
    assert len(set(oldest.tolist())) == len(oldest)
    return sorted(oldest.tolist())


def test_nothing_is_popped_from_empty_buckets() -> None:
    assert pop(LruBuckets(4)) is None


def test_the_oldest_bucket_leaves_as_a_whole() -> None:
    lru = LruBuckets(9)
    lru.touch(ids(1, 2, 3), 5)
    lru.touch(ids(4, 5), 3)
    lru.add(ids(1, 4, 2))
    lru.add(ids(5, 3))
    assert [pop(lru), pop(lru), pop(lru)] == [[4, 5], [1, 2, 3], None]


def test_a_page_touched_since_moves_to_its_new_time() -> None:
    lru = LruBuckets(9)
    lru.touch(ids(1, 2), 1)
    lru.touch(ids(3), 2)
    lru.add(ids(1, 2, 3))
    lru.touch(ids(1), 3)
    assert [pop(lru), pop(lru), pop(lru), pop(lru)] == [[2], [3], [1], None]


def test_a_bucket_in_which_all_were_touched_is_passed_over() -> None:
    lru = LruBuckets(9)
    lru.touch(ids(1), 1)
    lru.touch(ids(2), 2)
    lru.add(ids(1, 2))
    lru.touch(ids(1), 7)
    assert [pop(lru), pop(lru)] == [[2], [1]]


def test_a_page_is_queued_once() -> None:
    lru = LruBuckets(9)
    lru.touch(ids(1), 1)
    lru.add(ids(1))
    lru.add(ids(1))
    assert [pop(lru), pop(lru)] == [[1], None]
    lru.add(ids(1))
    assert pop(lru) == [1]


def test_a_page_queued_again_at_an_earlier_time_leaves_at_that_time() -> None:
    """Its memory was freed and taken anew while it waited."""
    lru = LruBuckets(9)
    lru.touch(ids(1, 2), 5)
    lru.touch(ids(3), 4)
    lru.add(ids(1, 2, 3))
    lru.touch(ids(1), 0)
    lru.add(ids(1))
    assert [pop(lru), pop(lru), pop(lru), pop(lru)] == [[1], [3], [2], None]


def test_a_page_that_comes_back_to_a_bucket_is_in_it_once() -> None:
    lru = LruBuckets(9)
    lru.touch(ids(1, 2), 5)
    lru.add(ids(1, 2))
    lru.touch(ids(1), 0)
    lru.add(ids(1))
    assert pop(lru) == [1]
    lru.touch(ids(1), 5)
    lru.add(ids(1))
    assert [pop(lru), pop(lru)] == [[1, 2], None]


def test_entries_that_are_void_do_not_pile_up() -> None:
    """A page goes round and round while younger buckets are never reached."""
    lru = LruBuckets(9)
    for now in range(1, 1000):
        lru.touch(ids(1), now)
        lru.add(ids(1))
        lru.touch(ids(1), 0)
        lru.add(ids(1))
        assert pop(lru) == [1]
    assert sum(map(len, lru._buckets.values())) <= 20


def test_the_longest_prefix_leaves_first_then_the_lowest_page() -> None:
    lru = LruBuckets(9)
    depth = candidates({1: 5, 2: 7, 3: 5, 4: 6})
    lru.add(ids(1, 2, 3))
    assert lru.pop_oldest(1, depth).tolist() == [2]
    lru.add(ids(4))
    assert lru.pop_oldest(2, depth).tolist() == [4, 1]
    assert lru.pop_oldest(2, depth).tolist() == [3]
    assert lru.pop_oldest(2, depth) is None


def test_pages_in_use_leave_the_queue_and_come_back_when_they_are_idle() -> None:
    lru = LruBuckets(9)
    lru.add(ids(1, 2, 3))
    busy = Candidates(candidates().depths, lambda large: large != 2)
    assert lru.pop_oldest(9, busy).tolist() == [1, 3]
    assert pop(lru) is None
    lru.add(ids(2))
    assert pop(lru) == [2]


def test_a_page_taken_anew_is_queued_at_its_new_depth() -> None:
    """It was freed while it waited, and serves another prefix of the same time now."""
    lru = LruBuckets(9)
    lru.add(ids(1, 2, 3))
    assert lru.pop_oldest(1, candidates({1: 9, 2: 8, 3: 2})).tolist() == [1]
    lru.start(ids(2))
    lru.add(ids(2))
    depth = candidates({2: 1, 3: 2})
    assert [lru.pop_oldest(1, depth).tolist() for _ in range(2)] == [[3], [2]]
    assert lru.pop_oldest(1, depth) is None


@pytest.mark.parametrize("seed", range(20))
def test_any_mix_of_adding_and_popping_leaves_by_time_depth_and_page(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lru = LruBuckets(400)
    depth = {page: int(rng.integers(5)) for page in range(401)}
    queued: dict[int, int] = {}
    for _ in range(60):
        new = ids(*rng.choice(np.arange(1, 401), 20, replace=False))
        new = new[[p not in queued for p in new.tolist()]]
        lru.touch(new, int(rng.integers(3)))
        lru.add(new)
        queued |= {p: int(lru.time[p]) for p in new.tolist()}
        for _ in range(3):
            wanted = int(rng.integers(1, 12))
            got = lru.pop_oldest(wanted, candidates(depth))
            order = sorted(queued, key=lambda p: (queued[p], -depth[p], p))
            oldest = [p for p in order if queued[p] == queued[order[0]]]
            assert sorted(got.tolist() if got is not None else []) == sorted(oldest[:wanted])
            queued = {p: t for p, t in queued.items() if p not in oldest[:wanted]}
            lru.check(ids(*queued))


def test_a_large_bucket_is_not_gone_through_again() -> None:
    """Each page's depth is asked for once, however often a few pages leave."""
    lru = LruBuckets(10_000)
    asked: list[int] = []

    def depths(large: Ids) -> Ids:
        asked.append(len(large))
        return large % 7

    large = Candidates(depths, all_idle)
    lru.add(np.arange(1, 9_001, dtype=np.int64))
    for page in range(9_001, 9_101):
        lru.add(ids(page))
        popped = lru.pop_oldest(1, large)
        assert popped is not None and len(popped) == 1
    assert sum(asked) == 9_100
