"""Loading or computing again, and what a step costs, by what it has taken. A page is one token of 8
bytes."""

from collections.abc import Mapping

import core_inspector as inside
import pytest
from core_builders import begin, evict_all, make_tiered, tokens

from jenga_sglang.core.dependency import Full
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.prices import (
    FEWEST_STEPS,
    REMEMBERED_NS,
    REMEMBERED_STEPS,
    Prices,
    Rate,
    Steps,
)
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


def step_ns(prompt_tokens: int, decodes: int) -> int:
    """A step costs as much as 200 tokens of prompt, and each request in it as much as five."""
    return 20_000 + 100 * prompt_tokens + 500 * decodes


def steps(count: int, prompt_tokens: int, decodes: int) -> Steps:
    ns = count * step_ns(prompt_tokens, decodes)
    return Steps(count, count * prompt_tokens, count * decodes, ns)


def decoding(*requests: int, count: int = FEWEST_STEPS) -> Mapping[int, Steps]:
    return {n.bit_length(): steps(count, 0, n) for n in requests}


def measured(prefills: Steps, decodes: Mapping[int, Steps], **policy: int) -> Prices:
    prices = Prices(CachePolicy(**policy))
    prices.learn_steps(prefills, decodes)
    return prices


@pytest.mark.parametrize("requests", [(2, 60), (2, 9, 60), (1, 3)])
@pytest.mark.parametrize("beside", [0, 12])
def test_a_step_costs_what_it_takes_without_any_request(
    requests: tuple[int, ...], beside: int
) -> None:
    prices = measured(steps(20, 1500, beside), decoding(*requests))
    assert prices.measured_step_tokens() in (199, 200)
    assert prices.step_cost_tokens in (298, 300), "one and a half times as much"


def test_of_one_number_of_requests_a_step_costs_what_it_takes_with_them() -> None:
    prices = measured(steps(20, 1500, 0), decoding(8))
    assert prices.measured_step_tokens() == 24_000 * 1500 // (step_ns(1500, 0) - 24_000)


def test_few_steps_tell_nothing() -> None:
    few = FEWEST_STEPS - 1
    for prices in (
        measured(steps(few, 1500, 0), decoding(2, 60)),
        measured(steps(20, 1500, 0), decoding(2, 60, count=few)),
        measured(Steps(), decoding(2, 60)),
        measured(steps(20, 1500, 0), {}),
    ):
        assert prices.measured_step_tokens() is None
        assert prices.step_cost_tokens == CachePolicy().step_cost_tokens


def test_of_kinds_seen_often_enough_the_others_change_nothing() -> None:
    rare = {7: Steps(FEWEST_STEPS - 1, 0, 100, 10**12)}
    prices = measured(steps(20, 1500, 0), {**decoding(2, 60), **rare})
    assert prices.measured_step_tokens() in (199, 200)


def test_prompts_so_short_that_they_take_no_time_tell_nothing() -> None:
    """66 tokens take a quarter of their step."""
    assert measured(steps(20, 67, 0), decoding(2, 60)).measured_step_tokens() in (199, 200)
    assert measured(steps(20, 66, 0), decoding(2, 60)).measured_step_tokens() is None


def test_a_clock_that_stands_still_tells_nothing() -> None:
    prices = measured(Steps(20, 20 * 1500, 0, 0), {1: Steps(20, 0, 20, 0)})
    assert prices.measured_step_tokens() is None


def test_steps_that_take_no_longer_with_more_requests_are_all_fixed_cost() -> None:
    slower = {1: Steps(20, 0, 20, 20 * 30_000), 5: Steps(20, 0, 400, 20 * 20_000)}
    prices = measured(Steps(20, 20 * 1500, 0, 20 * 180_000), slower)
    assert prices.measured_step_tokens() == 30_000 * 1500 // 150_000


def test_steps_that_take_as_long_as_they_have_requests_cost_next_to_nothing() -> None:
    """Not nothing: that would switch the weighing off."""
    longer = {1: Steps(20, 0, 20, 20 * 1_000), 5: Steps(20, 0, 400, 20 * 40_000)}
    prices = measured(steps(20, 1500, 0), longer)
    assert (prices.measured_step_tokens(), prices.step_cost_tokens) == (0, 1)


def test_a_policy_may_fix_what_a_step_costs_or_leave_it_out() -> None:
    seen = steps(20, 1500, 0), decoding(2, 60)
    assert measured(*seen, step_cost_tokens=90, step_cost_percent=0).step_cost_tokens == 90
    assert measured(*seen, step_cost_tokens=0).step_cost_tokens == 0
    assert measured(*seen, step_cost_percent=100).step_cost_tokens in (199, 200)


def test_a_step_that_has_become_dearer_is_learnt() -> None:
    prices = measured(steps(20, 1500, 0), decoding(2, 60, count=REMEMBERED_STEPS))
    dearer = {n.bit_length(): Steps(32, 0, 32 * n, 2 * 32 * step_ns(0, n)) for n in (2, 60)}
    for _ in range(100):
        prices.learn_steps(Steps(32, 32 * 1500, 0, 32 * (step_ns(1500, 0) + 20_000)), dearer)
    assert prices.step_cost_tokens == pytest.approx(600, rel=0.05)
    assert all(steps.count <= REMEMBERED_STEPS for steps in prices.decodes.values())
