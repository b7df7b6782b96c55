"""Buckets of large pages with equal logical times."""

from core_builders import ids

from jenga_sglang.core.lru import LruBuckets


def pop(lru: LruBuckets) -> list[int] | None:
    oldest = lru.pop_oldest()
    return None if oldest is None else sorted(oldest.tolist())


def test_nothing_is_popped_from_empty_buckets() -> None:
    assert LruBuckets(4).pop_oldest() is None


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


def test_a_page_may_become_older() -> None:
    lru = LruBuckets(9)
    lru.touch(ids(1, 2), 5)
    lru.touch(ids(3), 4)
    lru.add(ids(1, 2, 3))
    lru.touch(ids(1), 0)
    lru.touch(ids(3), 6)
    assert [pop(lru), pop(lru), pop(lru)] == [[2], [1], [3]]
