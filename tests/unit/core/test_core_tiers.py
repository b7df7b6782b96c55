"""What goes to the host and comes back, in small numbers. Pages of one token; a small page is a
large page unless said otherwise."""

import core_inspector as inside
import pytest
from core_builders import begin, evict_all, ids, make_tiered, tokens

from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow
from jenga_sglang.core.stats import large_page_map
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import WritePolicy

PROMPT = tokens(range(10))


def serve(manager: TieredManager, prompt: Tokens) -> None:
    running = begin(manager, prompt, publish=True)
    manager.publish(running, None, prompt)
    manager.release(running)


def hit_pages(manager: TieredManager, prompt: Tokens) -> tuple[int, int]:
    device, whole = manager.match_tiers(None, prompt)
    return device.path.num_pages, whole.path.num_pages


def in_host(manager: TieredManager) -> list[int]:
    return [len(held) for held in inside.host_held(manager)]


def test_what_was_evicted_is_still_a_hit_and_is_loaded_page_by_page() -> None:
    manager = make_tiered(Full(), num_large=10, num_host=20)
    serve(manager, PROMPT)
    assert in_host(manager) == [0]
    inside.evict_large(manager, 4)
    assert in_host(manager) == [4]
    assert hit_pages(manager, PROMPT) == (6, 10)
    running = manager.load(manager.match_tiers(None, PROMPT)[1])
    assert running is not None
    writes, loads = manager.tiers.take_copies()
    assert (writes.to_host, loads.to_host) == (True, False)
    assert sorted(loads.host.tolist()) == sorted(writes.host.tolist())
    assert hit_pages(manager, PROMPT) == (10, 10)
    manager.release(running)
    manager.check_idle()


def test_losing_the_device_copy_of_a_page_loses_nothing_that_follows_it() -> None:
    manager = make_tiered(Full(), SlidingWindow(3), num_large=20, num_host=20)
    serve(manager, PROMPT)
    inside.evict_pages(manager, 0, inside.pages_of(manager, PROMPT)[:1])
    assert hit_pages(manager, PROMPT) == (0, 10)
    assert manager.counters.cascaded.total() == 0
    manager.check_idle()


def test_only_the_last_window_before_a_kept_length_is_written() -> None:
    manager = make_tiered(Full(), SlidingWindow(3), num_large=40, num_host=40)
    running = begin(manager, PROMPT, publish=True)
    manager.publish(running, None, PROMPT, keep=[10, 6])
    manager.release(running)
    evict_all(manager)
    # Two pages a window, at 10 and at 6.
    assert in_host(manager) == [10, 4]
    assert [hit_pages(manager, PROMPT[:n]) for n in (10, 9, 6)] == [(0, 10), (0, 6), (0, 6)]


@pytest.mark.parametrize(
    ("write_policy", "after_one", "after_two"),
    [(WritePolicy.THROUGH, 10, 10), (WritePolicy.SELECTIVE, 0, 9), (WritePolicy.BACK, 0, 0)],
)
def test_when_pages_are_written(write_policy: WritePolicy, after_one: int, after_two: int) -> None:
    manager = make_tiered(Full(), num_large=40, num_host=40, write_policy=write_policy)
    serve(manager, PROMPT)
    assert in_host(manager) == [after_one]
    serve(manager, PROMPT)  # the last token is computed again
    assert in_host(manager) == [after_two]
    evict_all(manager)
    assert in_host(manager) == [10]


def test_a_page_is_written_once_while_the_host_has_it() -> None:
    manager = make_tiered(Full(), num_large=10, num_host=20)
    for _ in range(3):
        serve(manager, PROMPT)
        evict_all(manager)
        running = manager.load(manager.match_tiers(None, PROMPT)[1])
        assert running is not None
        manager.release(running)
    assert manager.tier_counters.written.total() == 10
    assert manager.tier_counters.loaded.total() == 30


def test_a_load_that_does_not_fit_changes_nothing() -> None:
    manager = make_tiered(Full(), num_large=12, num_host=20)
    serve(manager, PROMPT)
    evict_all(manager)
    before = inside.digest(manager), in_host(manager)
    whole = manager.match_tiers(None, PROMPT)[1]
    assert manager.load(whole, beside=[3]) is None
    # A number has been given to it, nothing else.
    assert (inside.digest(manager), in_host(manager)) == before
    assert manager.tier_counters.declined_loads == 1
    running = manager.load(whole, beside=[2])
    assert running is not None and running.num_pages == 10


def test_a_hit_that_the_host_has_lost_since_is_not_loaded() -> None:
    manager = make_tiered(Full(), num_large=10, num_host=10)
    serve(manager, PROMPT)
    evict_all(manager)
    whole = manager.match_tiers(None, PROMPT)[1]
    serve(manager, tokens(range(100, 110)))
    evict_all(manager)
    assert hit_pages(manager, PROMPT)[1] < 10
    assert manager.load(whole) is None
    manager.check_idle()


def test_what_the_host_loses_takes_what_follows_along_in_both_tiers() -> None:
    manager = make_tiered(Full(), num_large=20, num_host=20)
    serve(manager, PROMPT)
    pages = inside.pages_of(manager, PROMPT)
    inside.evict_pages(manager, 0, pages[:4])
    assert in_host(manager) == [4]
    inside.evict_from_host(manager, 0, pages[2:3])
    assert hit_pages(manager, PROMPT) == (0, 2)
    assert manager.counters.cascaded[0] == 6
    manager.check_idle()


def test_the_host_gives_up_what_the_device_has_before_what_only_it_has() -> None:
    manager = make_tiered(Full(), num_large=30, num_host=15)
    first, second = tokens(range(10)), tokens(range(100, 110))
    serve(manager, first)
    evict_all(manager)
    # Loaded again: now in both.
    running = manager.load(manager.match_tiers(None, first)[1])
    assert running is not None
    serve(manager, second)
    inside.evict_pages(manager, 0, inside.pages_of(manager, second))
    assert hit_pages(manager, second) == (0, 10)
    assert hit_pages(manager, first) == (10, 10)
    manager.release(running)


def test_a_host_smaller_than_what_leaves_keeps_the_beginning() -> None:
    manager = make_tiered(Full(), num_large=10, num_host=4)
    serve(manager, PROMPT)
    evict_all(manager)
    assert manager.tier_counters.not_written[0] == 6
    assert in_host(manager) == [4]
    assert hit_pages(manager, PROMPT) == (0, 4)


def test_a_snapshot_is_loaded_without_those_before_it() -> None:
    manager = make_tiered(LastState(), num_large=20, num_host=20)
    serve(manager, PROMPT)
    evict_all(manager)
    whole = manager.match_tiers(None, PROMPT)[1]
    assert whole.path.num_pages == 10
    running = manager.load(whole)
    assert running is not None
    assert manager.tier_counters.loaded[0] == 1


def test_nothing_is_left_after_a_reset() -> None:
    manager = make_tiered(Full(), num_large=10, num_host=20)
    serve(manager, PROMPT)
    evict_all(manager)
    manager.reset()
    assert in_host(manager) == [0]
    assert hit_pages(manager, PROMPT) == (0, 0)
    manager.check_idle()


def test_ids_come_free_when_neither_tier_holds_a_page() -> None:
    manager = make_tiered(Full(), num_large=10, num_host=10)
    serve(manager, PROMPT)
    free = inside.num_free_ids(manager)
    assert free == inside.num_ids(manager) - 10
    assert manager.evict(3) == 3
    manager.check_idle()


def test_each_tier_has_a_map_of_its_large_pages() -> None:
    """Five of ten pages have left the device; the host has nothing pinned."""
    manager = make_tiered(Full(), num_large=10, num_host=6)
    serve(manager, PROMPT)
    inside.evict_large(manager, 5)
    device, host = (large_page_map(memory.large) for memory in manager.memories)
    cached, free = bytes([1, 0x0F]), bytes(2)
    assert sorted([device[i : i + 2] for i in range(0, 20, 2)]) == [free] * 5 + [cached] * 5
    assert sorted([host[i : i + 2] for i in range(0, 12, 2)]) == [free] + [cached] * 5


class TestCorruptHost:
    def test_a_page_of_the_host_that_is_not_in_the_tree_is_found(self) -> None:
        manager = make_tiered(Full(), num_large=10, num_host=20)
        running = begin(manager, PROMPT)
        inside.leave_in_host(manager, 0, running.row[:1])
        with pytest.raises(CorruptPool, match="not in the tree"):
            manager.check()

    def test_a_pin_that_stays_in_the_host_is_found(self) -> None:
        manager = make_tiered(Full(), num_large=10, num_host=20)
        serve(manager, PROMPT)
        evict_all(manager)
        inside.host(manager).pin(0, ids(int(inside.pages_of(manager, PROMPT)[0])))
        with pytest.raises(CorruptPool, match="pinned more often"):
            manager.check()
