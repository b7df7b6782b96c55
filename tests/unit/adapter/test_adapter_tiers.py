"""The prefix cache over host memory, as SGLang's scheduler drives it. Pages of four tokens."""

from array import array
from types import SimpleNamespace
from typing import Any

import core_inspector as inside
import pytest
from adapter_builders import make_tiered_cache
from core_builders import begin, evict_all, tokens
from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.tiered_cache import JengaTieredCache
from jenga_sglang.core.ids import Ids

NAMESPACE = Namespace(None, None, None)
PAGE = 4
PROMPT = tokens(range(6 * PAGE))
QUESTION = tokens(PROMPT, range(900, 904))


@pytest.fixture
def cache() -> JengaTieredCache:
    """Six pages of a prompt, of which two have left the pool of eight."""
    cache = make_tiered_cache(num_large=8, num_host=8, page_size=PAGE)
    compute(cache, PROMPT)
    inside.evict_large(cache.manager, 2)
    cache.run_copies()
    return cache


def compute(cache: JengaTieredCache, history: Ids) -> None:
    """Publish ``history``, every page filled with its own first token."""
    running = begin(cache.manager, history, namespace=NAMESPACE)
    write(cache, running.row, history)
    cache.manager.publish(running, NAMESPACE, history)
    cache.manager.release(running)


def pages_of_pool(cache: JengaTieredCache) -> Any:
    """(small pages, bytes) of the only group."""
    buffer = cache.token_to_kv_pool_allocator.get_kvcache().buffer
    size = cache.manager.geometry.groups[0].small_page_bytes
    return buffer[: len(buffer) // size * size].view(-1, size)


def write(cache: JengaTieredCache, row: Ids, history: Ids) -> None:
    small = inside.tables(cache.manager)[0][row, 0]
    for place, page in enumerate(small.tolist()):
        pages_of_pool(cache)[page] = int(history[place * PAGE]) % 251


def assert_written(cache: JengaTieredCache, row: Ids, history: Ids) -> None:
    small = inside.tables(cache.manager)[0][row, 0]
    for place, page in enumerate(small.tolist()):
        assert (pages_of_pool(cache)[page] == int(history[place * PAGE]) % 251).all()


def match(cache: JengaTieredCache, prompt: Ids) -> Any:
    key = RadixKey(array("q", prompt.tolist()), None)
    return cache.match_prefix(MatchPrefixParams(key=key))


def check(budget: JengaPrefillBudget, hit_tokens: int, chunk: int | None = None) -> bool:
    length = len(QUESTION)
    fits, _ = budget.check_prefill(
        extend_input_len=length - hit_tokens,
        total_tokens=0,
        max_new_tokens=PAGE,
        input_tokens=length,
        swa_host_hit_length=0,
        chunk_limit=chunk,
    )
    return fits


def admit(cache: JengaTieredCache) -> tuple[int, Any]:
    """As SGLang admits the question: what it loaded, and the lock that the request keeps."""
    found = match(cache, QUESTION[:-1])
    budget = JengaPrefillBudget(cache.admission)
    considered = cache.lock(found.last_device_node)
    assert check(budget, found.device_prefix_len + found.host_hit_length)
    assert budget.prepare_load_back()
    req = SimpleNamespace(last_node=found.last_device_node)
    loaded, node = cache.init_load_back(
        InitLoadBackParams(found.best_match_node, found.host_hit_length, req=req)
    )
    kept = cache.lock(node)
    cache.unlock(considered)
    return loaded, kept


def test_a_match_says_what_the_device_has_and_what_the_host_adds(cache: JengaTieredCache) -> None:
    found = match(cache, PROMPT)
    assert (found.device_prefix_len, found.host_hit_length) == (4 * PAGE, 2 * PAGE)
    assert found.last_device_node is not found.best_match_node
    compute(cache, tokens(range(500, 504)))
    other = match(cache, tokens(range(500, 504)))
    assert (other.device_prefix_len, other.host_hit_length) == (PAGE, 0)
    assert other.last_device_node is other.best_match_node is other.last_host_node


def test_what_is_admitted_holds_the_loaded_hit_once(cache: JengaTieredCache) -> None:
    loaded, kept = admit(cache)
    assert loaded == 2 * PAGE
    assert list(cache.manager.running.values()) == [kept.receipt]
    assert_written(cache, kept.receipt.row, PROMPT)
    assert cache.manager.tier_counters.host_hit_tokens == 2 * PAGE
    cache.unlock(kept)
    cache.manager.check_idle()


def test_room_that_others_were_promised_is_not_loaded_into(cache: JengaTieredCache) -> None:
    found = match(cache, QUESTION[:-1])
    budget = JengaPrefillBudget(cache.admission)
    considered = cache.lock(found.last_device_node)
    assert check(budget, found.device_prefix_len + found.host_hit_length)
    # Two pages are free, and two are needed for the rest: as if another had been admitted since.
    budget._pending = [3]
    req = SimpleNamespace(last_node=found.last_device_node)
    params = InitLoadBackParams(found.best_match_node, found.host_hit_length, req=req)
    assert cache.init_load_back(params) == (0, found.last_device_node)
    kept = cache.lock(found.last_device_node)
    cache.unlock(considered)
    cache.unlock(kept)
    cache.manager.check_idle()


def test_a_prompt_that_is_cut_is_admitted_where_its_load_is_not_worth_it(
    cache: JengaTieredCache,
) -> None:
    """SGLang asks again, for what is to be computed then: two prompts are not cut by that."""
    found = match(cache, QUESTION[:-1])
    budget = JengaPrefillBudget(cache.admission)
    considered = cache.lock(found.last_device_node)
    assert check(budget, found.device_prefix_len + found.host_hit_length, chunk=2)
    prices = cache.manager.prices
    prices.copies.learn(1, 10**9)
    prices.prompts.learn(10**6, 1)
    req = SimpleNamespace(last_node=found.last_device_node)
    params = InitLoadBackParams(found.best_match_node, found.host_hit_length, req=req)
    assert cache.init_load_back(params) == (0, found.last_device_node)
    assert cache.manager.tier_counters.not_worth_loads == 1
    assert check(budget, found.device_prefix_len, chunk=PAGE)
    budget.reserve(3 * PAGE, PAGE, chunk_limit=PAGE)
    assert not check(budget, found.device_prefix_len, chunk=PAGE), "two prompts are cut"
    cache.unlock(considered)


def test_what_is_to_be_loaded_counts_as_room_that_is_asked_for(cache: JengaTieredCache) -> None:
    found = match(cache, QUESTION[:-1])
    budget = JengaPrefillBudget(cache.admission)
    lock = cache.lock(found.last_device_node)
    # Four pages are pinned; two to load, one of the question, one to grow: all eight.
    assert check(budget, found.device_prefix_len + found.host_hit_length)
    assert budget.weigh_candidate().asked == (4,)
    assert budget.beside_load(6 * PAGE) == [2]
    cache.unlock(lock)


def test_a_loaded_hit_that_nobody_locks_is_let_go(cache: JengaTieredCache) -> None:
    found = match(cache, QUESTION[:-1])
    budget = JengaPrefillBudget(cache.admission)
    considered = cache.lock(found.last_device_node)
    check(budget, 6 * PAGE)
    req = SimpleNamespace(last_node=found.last_device_node)
    cache.init_load_back(InitLoadBackParams(found.best_match_node, 2 * PAGE, req=req))
    cache.unlock(considered)
    other = cache.lock(match(cache, tokens(range(700, 708))).last_device_node)
    assert list(cache.manager.running.values()) == [other.receipt]
    cache.unlock(other)
    cache.manager.check_idle()


def test_a_flush_empties_both_tiers(cache: JengaTieredCache) -> None:
    cache.reset()
    found = match(cache, PROMPT)
    assert (found.device_prefix_len, found.host_hit_length) == (0, 0)
    assert cache.token_to_kv_pool_host.available_size() == cache.token_to_kv_pool_host.logical_size


def test_sglangs_host_metrics_count_tokens(cache: JengaTieredCache) -> None:
    host = cache.token_to_kv_pool_host
    assert (host.logical_size, host.available_size()) == (8 * PAGE, 6 * PAGE)


def test_freed_pages_are_poison_in_both_tiers() -> None:
    cache = make_tiered_cache(num_large=8, num_host=8, page_size=PAGE, poison_freed=True)
    compute(cache, PROMPT)
    evict_all(cache.manager)
    cache.run_copies()
    host = cache.token_to_kv_pool_host
    held = sorted(inside.host_held(cache.manager)[0])
    size = cache.manager.geometry.groups[0].small_page_bytes
    pages = host.buffer[: len(host.buffer) // size * size].view(-1, size)
    assert not (pages[held] == 0xFF).all(dim=1).any()
    inside.evict_from_host(cache.manager, 0, inside.pages_of(cache.manager, PROMPT, NAMESPACE))
    cache.run_copies()
    assert (pages[held] == 0xFF).all()


def test_the_scheduler_finds_nothing_in_flight(cache: JengaTieredCache) -> None:
    assert not cache.ongoing_write_through and not cache.ongoing_load_back
    assert cache.ready_to_load_host_cache() < 0
    cache.check_hicache_events()
    cache.flush_pending_backups()
    cache.clear_storage_backend()
