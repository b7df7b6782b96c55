"""Requests that begin with what an encoder made: pages of their own, whole or not at all."""

from collections.abc import Iterator

import core_inspector as inside
import numpy as np
import pytest
from core_builders import begin, grow, hit_tokens, make_manager, serve, tokens

from jenga_sglang.core.admission import longest_request, request_pages
from jenga_sglang.core.books.tree import Encoded, Tokens
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.dependency import CrossAttention, Full, SlidingWindow, check_legal
from jenga_sglang.core.live_groups import register_group, retire_group
from jenga_sglang.core.manager import Manager

MiB = 1 << 20


def vision_manager(num_large: int = 40) -> Manager:
    """Text layers with and without a window, and layers that read images; pages of 4 tokens."""
    return make_manager(
        Full(), SlidingWindow(6), CrossAttention(), num_large=num_large, page_size=4
    )


def image(number: int, num_tokens: int) -> Tokens:
    return np.full(num_tokens, 1000 + number)


def serve_image(manager: Manager, history: Tokens, encoder_tokens: int) -> None:
    namespace = Encoded(None, encoder_tokens)
    running = manager.lock(manager.match(namespace, history[:-1]))
    grow(manager, running, len(history))
    manager.publish(running, namespace, history)
    manager.release(running)


def test_text_and_image_layers_hold_nothing_of_each_other() -> None:
    """Two pages of an image and five of text."""
    manager = vision_manager()
    history = tokens(image(1, 8), range(20))
    running = manager.lock(manager.match(Encoded(None, 8), history))
    grow(manager, running, 28)
    held = [np.flatnonzero(table[running.row, 0]).tolist() for table in inside.tables(manager)]
    assert held == [[2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [0, 1]]
    manager.slide(running, 28)
    assert [[tuple(r) for r in ranges] for ranges in running.held] == [[(2, 7)], [(5, 7)], [(0, 2)]]
    manager.check()


def test_an_image_is_hit_as_a_whole_and_by_any_question() -> None:
    manager = vision_manager()
    serve_image(manager, tokens(image(1, 8), range(20)), 8)
    namespace = Encoded(None, 8)
    same = tokens(image(1, 8), range(12), 99, 99)
    other = tokens(image(1, 8), range(50, 60))
    assert hit_tokens(manager, same, namespace=namespace) == 20
    assert hit_tokens(manager, other, namespace=namespace) == 8
    assert hit_tokens(manager, image(1, 8)[:7], namespace=namespace) == 0
    assert hit_tokens(manager, image(2, 8), namespace=namespace) == 0
    # The same ids, but not made by an encoder, or made in another number.
    assert hit_tokens(manager, same) == 0
    assert hit_tokens(manager, same, namespace=Encoded(None, 4)) == 0


def test_text_only_requests_take_nothing_of_the_image_layers() -> None:
    manager = vision_manager()
    running = begin(manager, tokens(range(20)))
    assert inside.num_used(manager)[2] == 0
    assert request_pages(manager, 20, 20, 0)[2] == 0
    serve(manager, tokens(range(30, 50)))
    assert hit_tokens(manager, tokens(range(30, 50))) == 20
    manager.release(running)
    manager.check_idle()


def test_admission_counts_an_image_once_and_for_its_own_layers() -> None:
    manager = vision_manager()
    assert request_pages(manager, 28, 28, 0, encoder_pages=2) == [5, 5, 2]
    assert request_pages(manager, 28, 20, 8, encoder_pages=2) == [5, 5, 0]
    # A window of 6 reads 5 tokens; one by one, with boundaries, that is at most four pages.
    assert request_pages(manager, 108, 1, 8, encoder_pages=2) == [25, 4, 0]


def test_a_page_of_an_image_takes_the_rest_of_the_image_with_it() -> None:
    """Every page is a large page. The last of four image pages goes, and what is above and below
    it is of no use: all of it is free again."""
    manager = make_manager(Full(), CrossAttention(), num_large=40, page_size=4)
    serve_image(manager, tokens(image(1, 16), range(8)), 16)
    assert inside.num_held(manager) == [2, 4]
    last = inside.pages_of(manager, image(1, 16), Encoded(None, 16))[3:4]
    inside.evict_pages(manager, 1, last)
    manager.check()
    assert inside.num_held(manager) == [0, 0]
    assert inside.num_free(manager) == inside.num_large(manager)


def test_an_image_counts_in_the_length_that_a_history_can_have() -> None:
    """Of 64 tokens an image has 40. A window of 30 forgets nothing of the 24 that are left: without
    the second page of text nobody can go on behind it. In a text alone that can be."""
    manager = make_manager(
        Full(), SlidingWindow(30), CrossAttention(), num_large=60, page_size=4, max_length=64
    )
    serve(manager, tokens(range(100, 160)))
    text = inside.pages_of(manager, tokens(range(100, 160)))
    inside.evict_pages(manager, 1, text[1:2])
    serve_image(manager, tokens(image(1, 40), range(24)), 40)
    assert inside.num_held(manager) == [15 + 6, 14 + 6, 10]
    pages = inside.pages_of(manager, tokens(image(1, 40), range(24)), Encoded(None, 40))
    inside.evict_pages(manager, 1, pages[11:12])
    assert inside.num_held(manager) == [15 + 1, 14 + 1, 10]
    manager.check()


def test_pages_of_an_image_that_a_request_pins_stay() -> None:
    """Two images that begin alike: the tail of one goes, the head that they share does not."""
    manager = make_manager(Full(), CrossAttention(), num_large=40, page_size=4)
    serve_image(manager, tokens(image(1, 8), image(2, 8), range(8)), 16)
    namespace = Encoded(None, 16)
    history = tokens(image(1, 8), image(3, 8), range(8))
    running = manager.lock(manager.match(namespace, history))
    grow(manager, running, len(history))
    manager.publish(running, namespace, history)
    images = tokens(image(1, 8), image(2, 8))
    tail = inside.pages_of(manager, images, namespace)[3:4]
    inside.evict_pages(manager, 1, tail)
    manager.check()
    manager.release(running)
    assert hit_tokens(manager, history, namespace=namespace) == 24


def test_image_layers_can_come_while_the_pool_is_in_use() -> None:
    """A modality seen for the first time: text requests of before run on, images have pages."""
    manager = make_manager(Full(), num_large=40, page_size=4)
    before = begin(manager, tokens(range(10)))
    spec = LayerGroupSpec("images", (7,), CrossAttention(), 4, 4)
    group = register_group(manager, GroupGeometry(spec, 4))
    grow(manager, before, 30)
    serve_image(manager, tokens(image(1, 8), range(9)), 8)
    assert inside.num_held(manager)[group] == 2
    assert hit_tokens(manager, tokens(image(1, 8)), namespace=Encoded(None, 8)) == 8
    retire_group(manager, group)
    assert inside.num_held(manager)[group] == 0
    manager.release(before)
    manager.check_idle()


@pytest.mark.parametrize("encoder_tokens", [0, 1, 8, 50])
@pytest.mark.parametrize("dependency", [Full(), SlidingWindow(5), CrossAttention()])
def test_after_an_encoder_every_dependency_is_legal(
    dependency: Full | SlidingWindow | CrossAttention, encoder_tokens: int
) -> None:
    resolved = dependency.after_encoder(encoder_tokens)
    check_legal(resolved, range(60))
    needed = [t for r in resolved.needed(60) for t in range(r.start, r.stop)]
    assert all((t < encoder_tokens) == dependency.reads_encoder for t in needed)


# -- Llama-3.2-11B-Vision: 32 layers for text, 8 for the image, 4,096 bytes a layer and token -----


def mllama_geometry() -> Geometry:
    cross = (3, 8, 13, 18, 23, 28, 33, 38)
    text = tuple(n for n in range(40) if n not in cross)
    specs = (
        LayerGroupSpec("full", text, Full(), 2048, 2048),
        LayerGroupSpec("cross", cross, CrossAttention(), 2048, 2048),
    )
    plan = plan_geometry(specs, pool_bytes=8 << 30, max_length=131_072, page_size=16)
    return plan.geometry


def held_bytes(manager: Manager) -> Iterator[int]:
    for used, cut in zip(inside.num_used(manager), manager.geometry.groups, strict=True):
        yield used * cut.small_page_bytes


@pytest.mark.parametrize(
    ("text_tokens", "perfect_mib", "stock_mib"),
    [(200, 75, 281), (1000, 175, 406), (4096, 562, 890)],
)
def test_an_image_request_holds_what_its_layers_read(
    text_tokens: int, perfect_mib: int, stock_mib: int
) -> None:
    """1,601 tokens of an image beside the text. Stock keeps all of both in all 40 layers."""
    manager = Manager(mllama_geometry(), max_requests=4, max_length=131_072)
    image_pages = -(-1601 // 16)
    length = image_pages * 16 + text_tokens
    running = manager.lock(manager.miss(Encoded(None, image_pages * 16)))
    grow(manager, running, length)
    held = sum(held_bytes(manager))
    assert round(40 * 4096 * (1601 + text_tokens) / MiB) == stock_mib
    perfect = 4096 * (32 * text_tokens + 8 * 1601)
    assert round(perfect / MiB) == perfect_mib
    # No more than the last, partly filled page of each group beyond what is perfect.
    assert perfect <= held < perfect + 16 * 4096 * 40
    large_bytes = manager.geometry.large_page_bytes
    owned = sum(inside.num_owned(manager)) * large_bytes
    assert owned < held + 2 * large_bytes
    asked = request_pages(manager, length, length, 0, image_pages)
    page_bytes = [cut.page_bytes for cut in manager.geometry.groups]
    # Admission may count a page or two more per group for boundaries, and no image as text.
    asked_bytes = sum(n * b for n, b in zip(asked, page_bytes, strict=True))
    assert held <= asked_bytes <= held + 2 * sum(page_bytes)


def test_the_longest_request_counts_what_an_encoder_made_of_it() -> None:
    """Ten large pages of three pages of text, or one of an image."""
    manager = make_manager(Full(), CrossAttention(), num_large=10, page_size=4, layers=[1, 3])
    assert longest_request(manager, 8) == 30 * 4
    assert longest_request(manager, 8, 4) == (4 + 6 * 3) * 4
