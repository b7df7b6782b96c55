"""Locks of the prefix cache: what SGLang considers, then admits, is pinned once, until the end."""

import pytest
from adapter_builders import make_cache
from core_builders import make_manager, serve, tokens

from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.running import Hit

HISTORY = tokens(range(12))


@pytest.fixture
def cache() -> JengaPrefixCache:
    """A cache of one request's pages, 12 tokens on 3 pages of 4, nobody's now."""
    manager = make_manager(Full(), num_large=8, page_size=4)
    serve(manager, HISTORY)
    return make_cache(manager)


def hit(cache: JengaPrefixCache) -> Hit:
    found = cache.manager.match(None, HISTORY)
    assert found.path.num_pages == 3
    return found


def test_admitted_request_keeps_the_pin_it_was_considered_with(cache: JengaPrefixCache) -> None:
    node = hit(cache)
    considered = cache.lock(node)
    admitted = cache.lock(node)
    assert admitted.receipt is considered.receipt
    cache.unlock(considered)
    assert list(cache.manager.running.values()) == [admitted.receipt]
    assert cache.evictable_size() == 0
    cache.unlock(admitted)
    cache.manager.check_idle()
    assert cache.evictable_size() == 12


def test_refused_request_leaves_no_pin(cache: JengaPrefixCache) -> None:
    cache.unlock(cache.lock(hit(cache)))
    cache.manager.check_idle()


def test_the_same_hit_considered_again_has_a_pin_of_its_own(cache: JengaPrefixCache) -> None:
    node = hit(cache)
    first = cache.lock(node)
    cache.unlock(first)
    second = cache.lock(node)
    assert second.receipt is not first.receipt
    cache.unlock(second)
    cache.manager.check_idle()


def test_three_locks_of_a_hit_are_two_pins(cache: JengaPrefixCache) -> None:
    """Only the second lock can be of the request that the first one considered."""
    node = hit(cache)
    locks = [cache.lock(node) for _ in range(3)]
    assert len(cache.manager.running) == 2
    for lock in locks:
        cache.unlock(lock)
    cache.manager.check_idle()


def test_two_requests_with_one_prefix_share_no_pin(cache: JengaPrefixCache) -> None:
    first, second = cache.lock(hit(cache)), cache.lock(hit(cache))
    assert first.receipt is not second.receipt
    cache.unlock(first)
    assert cache.evictable_size() == 0
    cache.unlock(second)
    cache.manager.check_idle()


def test_unlocking_nothing_is_nothing(cache: JengaPrefixCache) -> None:
    cache.unlock(None)
    cache.manager.check_idle()
