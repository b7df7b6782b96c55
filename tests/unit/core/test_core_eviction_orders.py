"""What goes first under every `--radix-eviction-policy`: three histories of four pages each."""

from random import Random
from typing import Any

import core_inspector as inside
import pytest
from core_builders import begin, make_geometry, tokens

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.recency import Order
from jenga_sglang.core.tiered_manager import TieredManager

PAGE = 2
PAGES = 4
A, B, C = (tokens(range(start, start + PAGES * PAGE)) for start in (100, 200, 300))


def make(order: Order, num_large: int = 40) -> Manager:
    geometry = make_geometry((Full(),), num_large, page_size=PAGE)
    return Manager(geometry, max_requests=4, max_length=1000, order=order)


def serve(manager: Manager, *histories: Tokens, priority: int = 0) -> None:
    """Requests for one history each, and a token, which leave it in the cache."""
    for history in histories:
        running = begin(manager, tokens([*history, 1]))
        running.serves(priority)
        manager.publish(running, None, history)
        manager.release(running)


def hits(manager: Manager) -> dict[str, int]:
    """Pages of each history that are still there."""
    manager.check()
    named = zip("ABC", (A, B, C), strict=True)
    return {name: manager.match(None, history).path.num_pages for name, history in named}


@pytest.mark.parametrize(
    ("order", "gone"),
    [(Order.LRU, "A"), (Order.SLRU, "B"), (Order.LFU, "B"), (Order.PRIORITY, "A")],
)
def test_the_oldest_goes_first_but_where_a_hit_counts(order: Order, gone: str) -> None:
    manager = make(order)
    serve(manager, A, A, B, C)
    inside.evict_large(manager, PAGES)
    assert [name for name, pages in hits(manager).items() if not pages] == [gone]


@pytest.mark.parametrize(("order", "gone"), [(Order.SLRU, "A"), (Order.LFU, "C")])
def test_one_hit_is_enough_or_the_most_count(order: Order, gone: str) -> None:
    """A was hit twice and long ago, B twice as well, C once and last."""
    manager = make(order)
    serve(manager, A, A, A, B, B, B, C, C)
    inside.evict_large(manager, PAGES)
    assert [name for name, pages in hits(manager).items() if not pages] == [gone]


def test_what_a_request_of_high_priority_used_goes_last() -> None:
    """Priorities may be below 0, and the highest of a page's requests counts."""
    manager = make(Order.PRIORITY)
    serve(manager, A, priority=3)
    serve(manager, C)
    serve(manager, B, priority=-2)
    serve(manager, A, priority=-5)
    for left in ("AC", "A", ""):
        inside.evict_large(manager, PAGES)
        assert "".join(name for name, pages in hits(manager).items() if pages) == left


def test_of_one_weight_the_oldest_goes_first_from_its_end() -> None:
    manager = make(Order.LFU)
    serve(manager, A, A, B, B)
    inside.evict_large(manager, 2)
    assert hits(manager) == {"A": PAGES - 2, "B": PAGES, "C": 0}


def test_a_history_that_comes_back_begins_anew() -> None:
    """What is known of a page's hits goes with it."""
    manager = make(Order.LFU)
    serve(manager, A, A, A)
    inside.evict_large(manager, PAGES)
    serve(manager, A, B, B)
    inside.evict_large(manager, PAGES)
    assert [name for name, pages in hits(manager).items() if pages] == ["B"]


def test_a_hit_counts_in_every_group() -> None:
    """A window of two: with what it needs of A gone, A is no hit, so it must stay as well."""
    geometry = make_geometry((Full(), SlidingWindow(2)), 60, page_size=PAGE)
    manager = Manager(geometry, max_requests=4, max_length=1000, order=Order.SLRU)
    serve(manager, A, A, B, C)
    while hits(manager)["C"]:
        assert inside.evict_large(manager, 1)
    assert hits(manager) == {"A": PAGES, "B": 0, "C": 0}


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("host", [False, True])
def test_the_books_hold_while_little_fits(order: Order, host: bool) -> None:
    """Requests of any priority for histories that branch, in a pool for a few of them, with host
    memory below it and without: recounted after each."""
    geometry = make_geometry((Full(), SlidingWindow(6)), 24, page_size=PAGE)
    most: dict[str, Any] = {"max_requests": 4, "max_length": 1000, "order": order}
    host_bytes = 12 * geometry.large_page_bytes
    manager = (
        TieredManager(geometry, host_bytes=host_bytes, **most)
        if host
        else Manager(geometry, **most)
    )
    draw = Random(7)
    for _ in range(120):
        history = [draw.randrange(2) * 100 + place // 4 for place in range(draw.randrange(2, 24))]
        serve(manager, tokens(history), priority=draw.randrange(-2, 3))
        manager.check()
    assert sum(manager.counters.evicted.values()) > 100
    assert manager.counters.refused_reservations == 0
