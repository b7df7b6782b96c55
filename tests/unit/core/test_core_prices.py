"""Loading or computing again, by what both have taken. A page is one token of 8 bytes."""

import core_inspector as inside
from core_builders import begin, evict_all, make_tiered, tokens

from jenga_sglang.core.dependency import Full
from jenga_sglang.core.prices import REMEMBERED_NS, Prices, Rate
from jenga_sglang.core.tiered_manager import TieredManager

PROMPT = tokens(range(10))


def test_a_load_pays_when_its_bytes_take_less_time_than_its_tokens() -> None:
    prices = Prices(copies=Rate(1000, 10), prompts=Rate(100, 10))
    assert prices.is_worth(num_bytes=1000, tokens=100)
    assert not prices.is_worth(num_bytes=1001, tokens=100)
    assert not prices.is_worth(num_bytes=1000, tokens=99)


def test_a_copy_takes_as_long_as_so_many_tokens() -> None:
    prices = Prices(copies=Rate(1000, 20), prompts=Rate(100, 10))
    assert (prices.tokens_for(1000), prices.tokens_for(9)) == (200, 1)
    assert Prices(copies=Rate(1, 1)).tokens_for(1) is None
    assert Prices(prompts=Rate(1, 1)).tokens_for(1) is None


def test_what_has_not_been_measured_pays() -> None:
    assert Prices(copies=Rate(1, 10**9)).is_worth(10**12, 1)
    assert Prices(prompts=Rate(10**9, 1)).is_worth(10**12, 1)


def test_what_was_long_ago_counts_for_less() -> None:
    rate = Rate()
    rate.learn(1000, REMEMBERED_NS)
    slow = rate.per_second
    for _ in range(20):
        rate.learn(2000, REMEMBERED_NS // 2)
    assert 1.9 * 2 * slow < rate.per_second <= 4 * slow
    assert rate.ns <= REMEMBERED_NS


def in_host(prices: Prices) -> TieredManager:
    manager = make_tiered(Full(), num_large=10, num_host=20)
    manager.prices = prices
    running = begin(manager, PROMPT, publish=True)
    manager.publish(running, None, PROMPT)
    manager.release(running)
    evict_all(manager)
    return manager


def test_what_is_not_worth_it_is_not_loaded_and_counted() -> None:
    dear = Prices(copies=Rate(79, 10), prompts=Rate(10, 10))
    manager = in_host(dear)
    before = inside.digest(manager)
    whole = manager.match_tiers(None, PROMPT)[1]
    assert manager.load(whole, spared_tokens=10) is None
    assert inside.digest(manager) == before
    counters = manager.tier_counters
    assert (counters.not_worth_loads, counters.declined_loads) == (1, 0)
    assert not counters.loaded.total()


def test_what_is_worth_it_is_loaded() -> None:
    cheap = Prices(copies=Rate(80, 10), prompts=Rate(10, 10))
    manager = in_host(cheap)
    running = manager.load(manager.match_tiers(None, PROMPT)[1], spared_tokens=10)
    assert running is not None
    assert manager.tier_counters.not_worth_loads == 0
    assert manager.tier_counters.loaded.total() == 10
