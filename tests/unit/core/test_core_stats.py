"""What the statistics say of pools small enough to count by hand."""

from dataclasses import replace

from core_builders import begin, grow, make_geometry, make_manager, serve, tokens

from jenga_sglang.core.admission import weigh
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.stats import large_page_map, pool_stats


def test_bytes_of_one_request_by_hand() -> None:
    """Ten tokens in pages of 4: three pages of full, and of the window the last and the four
    tokens before it. The window's small page has 4 tokens of 8 bytes; two layers of full make
    its small page twice that, which is a large page."""
    manager = make_manager(Full(), SlidingWindow(5), num_large=10, page_size=4, layers=[2, 1])
    running = begin(manager, tokens(range(10)))
    manager.slide(running, 10)
    stats = pool_stats(manager)
    full, window = stats["groups"]
    assert stats["large_page_bytes"] == 64
    assert (full["used_bytes"], full["cached_bytes"], full["free_bytes"]) == (3 * 64, 0, 0)
    assert (window["used_bytes"], window["free_bytes"]) == (2 * 32, 2 * 32)
    assert (full["waste_bytes"], window["waste_bytes"]) == (2 * 16, 2 * 8)
    assert stats["free_bytes"] == (10 - 3 - 2) * 64
    assert stats["unusable_bytes"] == 64  # the reserved page

    grow(manager, running, 12)
    assert [g["waste_bytes"] for g in pool_stats(manager)["groups"]] == [0, 0]

    manager.publish(running, None, tokens(range(12)))
    manager.release(running)
    full, window = pool_stats(manager)["groups"]
    assert (full["used_bytes"], full["cached_bytes"]) == (0, 3 * 64)
    assert full["waste_bytes"] == window["waste_bytes"] == 0


def test_padding_is_waste() -> None:
    """Three used pages of one token, each with 8 bytes of a row and 24 of padding."""
    row = make_geometry([Full()], 1).groups[0]
    padded = Geometry((replace(row, padding_bytes=24),), 1, 10 * 32)
    manager = Manager(padded, max_requests=1, max_length=9)
    begin(manager, tokens(1, 2, 3))
    (group,) = pool_stats(manager)["groups"]
    assert (group["used_bytes"], group["waste_bytes"]) == (3 * 32, 3 * 24)


def test_the_map_shows_owner_used_and_cached() -> None:
    manager = make_manager(Full(), SlidingWindow(2), num_large=5, layers=[2, 1])
    assert large_page_map(manager.memories[0].large) == bytes(10)
    serve(manager, tokens(1, 2))
    begin(manager, tokens(7))
    cells = list(zip(*[iter(large_page_map(manager.memories[0].large))] * 2, strict=True))
    # Two full pages cached, both window pages cached in one large page, then the new request's.
    assert cells == [(1, 0x0F), (1, 0x0F), (2, 0x0F), (1, 0xF0), (2, 0x70)]


def test_a_request_is_weighed_in_large_pages() -> None:
    """Four large pages: one is used, one only cached, two are free. Two are promised."""
    manager = make_manager(Full(), num_large=4)
    serve(manager, tokens(1))
    begin(manager, tokens(2))
    weighing = weigh(manager, [2], [1])
    assert (weighing.available, weighing.promised, weighing.asked) == (3, 2, (1,))
    assert weighing.missing == 0
    assert weigh(manager, [2], [2]).missing == 1
