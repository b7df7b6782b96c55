"""Embeddings of images in a pool of twenty large pages of four tokens each."""

import core_inspector as inside
import pytest
import torch
from adapter_builders import make_pool_of_one_layer
from core_builders import begin, tokens
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult

from jenga_sglang.adapter.cache.embeddings import PoolEmbeddings

PAGE = 4
WIDTH = 32


@pytest.fixture
def cache() -> PoolEmbeddings:
    return PoolEmbeddings(make_pool_of_one_layer(20, page_size=PAGE, max_length=80), 1 << 20)


def embedding(number: int, num_tokens: int = 7) -> EmbeddingResult:
    return EmbeddingResult(embedding=torch.full((num_tokens, WIDTH), float(number)))


def test_what_was_stored_comes_back_until_it_is_freed(cache: PoolEmbeddings) -> None:
    large = (1 << 64) - 5  # hashes are unsigned
    for number in (3, large):
        assert cache.set(number, embedding(number % 100))
    for number in (3, large):
        assert cache.has(number)
        assert torch.equal(cache.get_single(number).embedding, embedding(number % 100).embedding)
    assert cache.free(3) and not cache.has(3) and not cache.free(3)
    assert cache.has(large)
    cache.clear()
    assert not cache.has(large)
    assert inside.num_free(cache._pool.manager) == 20


def test_it_gives_way_to_requests_and_never_the_other_way_round(cache: PoolEmbeddings) -> None:
    assert cache.set(1, embedding(1))
    manager = cache._pool.manager
    running = begin(manager, tokens(range(20 * PAGE)))
    assert not cache.has(1) and cache.get_single(1) is None
    assert not cache.set(2, embedding(2)), "all is used"
    manager.release(running)
    assert cache.set(2, embedding(2)) and cache.has(2)
    manager.check()


def test_names_of_what_is_gone_are_forgotten(cache: PoolEmbeddings) -> None:
    """No more names than the pool has pages, however many images come by."""
    most = inside.num_ids(cache._pool.manager)
    for number in range(3 * most):
        assert cache.set(number, embedding(number))
        assert len(cache._tokens) <= most + 1
    assert cache.has(3 * most - 1) and not cache.has(0)


def test_rows_of_another_width_are_kept_beside_the_pool(cache: PoolEmbeddings) -> None:
    assert cache.set(1, embedding(1))
    other = EmbeddingResult(embedding=torch.ones(3, 2 * WIDTH))
    free = inside.num_free(cache._pool.manager)
    assert cache.set(2, other)
    assert inside.num_free(cache._pool.manager) == free
    assert torch.equal(cache.get_single(2).embedding, other.embedding)
