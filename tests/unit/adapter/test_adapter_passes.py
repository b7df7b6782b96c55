"""What an admission pass knows and leaves to the next one; a question leaves nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
from adapter_builders import make_cache, make_scheduler, offer
from core_builders import begin, make_manager, tokens

from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.running import Hit

NUM_LARGE, PAGE = 4, 4


@pytest.fixture
def cache() -> JengaPrefixCache:
    return make_cache(make_manager(Full(), num_large=NUM_LARGE, page_size=PAGE))


@pytest.fixture
def miss(cache: JengaPrefixCache) -> Hit:
    return cache.manager.miss(Namespace(None, None, None))


def test_the_candidate_is_whose_prefix_is_locked(cache: JengaPrefixCache, miss: Hit) -> None:
    with cache.admission.passing(make_scheduler()) as passing:
        lock = cache.lock(miss)
        assert passing.candidate is lock.receipt
        cache.unlock(lock)
        assert passing.candidate is None


def test_who_is_admitted_has_two_locks_of_one_request(cache: JengaPrefixCache, miss: Hit) -> None:
    with cache.admission.passing(make_scheduler()) as passing:
        considered = cache.lock(miss)
        admitted = cache.lock(miss)
        assert admitted.receipt is considered.receipt and passing.candidate is None
        cache.unlock(considered)
    assert len(cache.manager.running) == 1
    cache.unlock(admitted)
    assert not cache.manager.running


def test_a_lock_of_another_pass_is_another_request(cache: JengaPrefixCache, miss: Hit) -> None:
    locks = []
    for _ in range(2):
        with cache.admission.passing(make_scheduler()):
            locks.append(cache.lock(miss))
    assert locks[0].receipt is not locks[1].receipt


def test_a_pass_that_fails_leaves_no_candidate(cache: JengaPrefixCache, miss: Hit) -> None:
    with pytest.raises(ValueError), cache.admission.passing(make_scheduler()):
        cache.lock(miss)
        raise ValueError
    assert cache.admission.now.candidate is None


def test_a_refusal_stays_until_a_pass_asks_again(cache: JengaPrefixCache, miss: Hit) -> None:
    begin(cache.manager, tokens(range(PAGE)))
    with cache.admission.passing(make_scheduler()):
        assert not offer(cache, NUM_LARGE * PAGE)
    refusal = cache.admission.now.refusal
    assert refusal is not None and refusal.cause == "memory"
    with cache.admission.passing(make_scheduler()) as passing:
        assert passing.refusal is refusal
    with cache.admission.passing(make_scheduler()) as passing:
        assert offer(cache, PAGE) and passing.refusal is None


def test_a_question_leaves_no_trace(cache: JengaPrefixCache) -> None:
    begin(cache.manager, tokens(range(PAGE)))
    decided = cache.admission.now
    with cache.admission.asking() as question:
        assert not offer(cache, NUM_LARGE * PAGE) and question.refusal is not None
    assert cache.admission.now is decided and decided.refusal is None
    with pytest.raises(ValueError), cache.admission.asking():
        raise ValueError
    assert cache.admission.now is decided


def test_who_waits_after_a_pass_is_in_the_schedulers_new_queue(cache: JengaPrefixCache) -> None:
    scheduler = make_scheduler(waiting=["first", "second"])
    with cache.admission.passing(scheduler) as passing:
        assert passing.waiting == ["first", "second"]
        scheduler.waiting_queue = ["second"]
    scheduler.waiting_queue.append("third")
    assert cache.admission.now.waiting == ["second", "third"]


def test_the_prompt_in_chunks_is_known_once_it_has_a_lock(
    cache: JengaPrefixCache, miss: Hit
) -> None:
    req: Any = SimpleNamespace(lock=None, full_untruncated_fill_ids=[0] * 8)
    with cache.admission.passing(make_scheduler(req, chunk_tokens=PAGE)) as passing:
        assert passing.chunked is None
    req.lock = cache.lock(miss)
    with cache.admission.passing(make_scheduler(req, chunk_tokens=PAGE)) as passing:
        assert passing.chunked is req.lock.receipt
