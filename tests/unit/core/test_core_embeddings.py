"""Embeddings of images in the pool, beside the histories of requests."""

import core_inspector as inside
import numpy as np
import pytest
from core_builders import begin, hit_tokens, make_manager, serve, tokens

from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import CrossAttention, Full
from jenga_sglang.core.embeddings import Embeddings
from jenga_sglang.core.live_groups import register_group
from jenga_sglang.core.manager import Manager


def with_embeddings(num_large: int) -> tuple[Manager, Embeddings]:
    """Pages of 4 tokens; the embeddings' group is born in a live pool."""
    manager = make_manager(Full(), num_large=num_large, page_size=4)
    spec = LayerGroupSpec("embeddings", (1,), CrossAttention(), 8, 0)
    return manager, Embeddings(manager, register_group(manager, GroupGeometry(spec, 4)))


def small_pages(embeddings: Embeddings, number: int, num_tokens: int) -> list[int]:
    pages = embeddings.find(number, num_tokens)
    assert pages is not None
    return inside.tables(embeddings.manager)[embeddings.group][pages, 0].tolist()


def test_an_embedding_is_kept_by_its_number_and_length() -> None:
    manager, embeddings = with_embeddings(10)
    assert embeddings.find(7, 10) is None
    pages = embeddings.store(7, 10)
    assert pages is not None and len(pages) == 3
    assert np.array_equal(embeddings.find(7, 10), pages)
    assert embeddings.find(7, 20) is None and embeddings.find(8, 10) is None
    assert len(set(small_pages(embeddings, 7, 10))) == 3
    manager.check_idle()
    assert embeddings.free(7, 10) and not embeddings.free(7, 10)
    assert inside.num_free(manager) == inside.num_large(manager)
    manager.check_idle()


def test_what_is_running_is_never_pushed_out() -> None:
    manager, embeddings = with_embeddings(5)
    running = begin(manager, tokens(range(16)))
    assert embeddings.store(7, 8) is None
    assert inside.num_used(manager)[0] == 4
    assert embeddings.store(8, 4) is not None
    manager.release(running)
    manager.check_idle()


def test_cached_prefixes_and_embeddings_push_each_other_out() -> None:
    manager, embeddings = with_embeddings(4)
    serve(manager, tokens(range(12)))
    assert embeddings.store(7, 12) is not None
    assert hit_tokens(manager, tokens(range(12))) < 12
    serve(manager, tokens(range(50, 66)))
    assert embeddings.find(7, 12) is None, "a part of an embedding is of no use"
    assert inside.num_held(manager)[embeddings.group] == 0
    manager.check_idle()


@pytest.mark.parametrize("read", [False, True])
def test_an_embedding_that_has_been_read_goes_first(read: bool) -> None:
    """Used after the cached prefix, it would stay; read to its end, it goes before it."""
    manager, embeddings = with_embeddings(6)
    serve(manager, tokens(range(12)))
    assert embeddings.store(7, 12) is not None
    if read:
        embeddings.has_been_read(7, 12)
    running = begin(manager, tokens(range(50, 62)))
    assert (embeddings.find(7, 12) is None) == read
    assert (hit_tokens(manager, tokens(range(12))) == 12) == read
    manager.release(running)
    manager.check_idle()


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    manager, embeddings = with_embeddings(10)
    manager.prefix_cache = False
    assert embeddings.store(7, 10) is None
    manager.check_idle()


def test_a_flushed_pool_has_forgotten_them() -> None:
    manager, embeddings = with_embeddings(10)
    embeddings.store(7, 10)
    manager.reset()
    assert embeddings.find(7, 10) is None
    assert embeddings.store(7, 10) is not None


def test_requests_with_pages_of_their_own_images_leave_no_place_for_them() -> None:
    manager = make_manager(Full(), CrossAttention(), num_large=10)
    with pytest.raises(ValueError, match="expected the only group"):
        Embeddings(manager, 0)
