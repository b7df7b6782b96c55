"""Buckets of large pages with equal logical times."""

from core_builders import ids

from jenga_sglang.core.lru import LruBuckets


def pop(lru: LruBuckets) -> list[int] | None:
    oldest = lru.pop_oldest()
    if oldest is None:
        return None
    assert len(set(oldest.tolist())) == len(oldest)
    return sorted(oldest.tolist())


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
    assert sum(len(part) for parts in lru._buckets.values() for part in parts) <= 20
