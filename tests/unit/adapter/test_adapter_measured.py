"""What copies and prompts take, by a clock that is moved by hand."""

from collections.abc import Iterator

import pytest
from core_builders import make_tiered

from jenga_sglang.adapter import host_copies
from jenga_sglang.adapter.cache.measured import ASK_EVERY_STEPS, Measured
from jenga_sglang.adapter.host_copies import HostCopies
from jenga_sglang.adapter.observe.report import digest
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.prices import Prices, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(host_copies, "time", clock)
    yield clock


class OfTwo(Agreement):
    """Of two ranks; the other one takes twice as long for prompts, and half for copies."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked = 0

    def least(self, *numbers: int) -> list[int]:
        self.asked += 1
        prompt, copy = numbers
        return [min(prompt, 2 * prompt), min(copy, copy // 2)]


def run(measured: Measured, clock: Clock, steps: int) -> None:
    for _ in range(steps):
        with measured.copying(100):
            clock.now += 3
        measured.prompt_begins(20)
        clock.now += 5
        measured.pass_begins()
        clock.now += 1000  # nothing is computed


def test_all_ranks_learn_the_time_of_the_slowest(clock: Clock) -> None:
    prices, agreement = Prices(), OfTwo()
    run(Measured(prices, agreement, HostCopies()), clock, ASK_EVERY_STEPS)
    steps = ASK_EVERY_STEPS
    assert prices.prompts == Rate(20 * steps, 10 * steps)
    assert prices.copies == Rate(100 * steps, 3 * steps)
    assert agreement.asked == 1


def test_ranks_ask_one_another_after_the_same_steps(clock: Clock) -> None:
    prices, agreement = Prices(), OfTwo()
    one = Measured(prices, agreement, HostCopies())
    run(one, clock, ASK_EVERY_STEPS - 1)
    assert not agreement.asked and not prices.prompts.units
    for _ in range(3):
        one.pass_begins()
    assert not agreement.asked
    run(one, clock, 1)
    assert agreement.asked == 1


def test_ranks_that_learned_something_else_have_another_digest() -> None:
    one, other = (make_tiered(Full(), num_large=4, num_host=4) for _ in range(2))
    assert digest(one) == digest(other)
    one.prices.prompts.learn(20, 10)
    assert digest(one) != digest(other)
    other.prices.prompts.learn(20, 10)
    assert digest(one) == digest(other)
    other.prices.copies.learn(20, 10)
    assert digest(one) != digest(other)
