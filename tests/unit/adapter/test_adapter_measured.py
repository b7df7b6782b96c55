"""What copies and prompts take, by a clock that is moved by hand."""

from collections.abc import Iterator

import pytest
from core_builders import make_tiered

from jenga_sglang.adapter import streams
from jenga_sglang.adapter.cache.measured import ASK_EVERY_STEPS, Measured
from jenga_sglang.adapter.host_copies import HostCopies
from jenga_sglang.adapter.observe.report import digest
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.prices import Prices, Rate, Steps


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(streams, "time", clock)
    yield clock


class OfTwo(Agreement):
    """Of two ranks; the other one takes twice as long for prompts, half for copies, and thrice for
    steps that only decode."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked = 0

    def least(self, *numbers: int) -> list[int]:
        self.asked += 1
        prompt, copy, *decodes = numbers
        return [min(prompt, 2 * prompt), min(copy, copy // 2), *(3 * ns for ns in decodes)]


def run(measured: Measured, clock: Clock, steps: int, *, decodes: int = 0) -> None:
    """Steps of five nanoseconds each, with a prompt of 20 tokens or only ``decodes``."""
    for _ in range(steps):
        with measured.copying(100):
            clock.now += 3
        if decodes:
            measured.step_begins(decodes=decodes)
        else:
            measured.step_begins(prompt_tokens=20)
        clock.now += 5
        measured.pass_begins()
        clock.now += 1000  # nothing is computed


def test_all_ranks_learn_the_time_of_the_slowest(clock: Clock) -> None:
    prices, agreement = Prices(), OfTwo()
    # What the last step takes is asked for with the next ones: on a GPU it is not known yet.
    run(Measured(prices, agreement, HostCopies()), clock, ASK_EVERY_STEPS + 1)
    steps = ASK_EVERY_STEPS
    assert prices.prompts == Rate(20 * steps, 10 * steps)
    assert prices.copies == Rate(100 * (steps + 1), 3 * (steps + 1))
    assert prices.prefills == Steps(steps, 20 * steps, 0, 10 * steps)
    assert agreement.asked == 1


def test_ranks_ask_one_another_after_the_same_steps(clock: Clock) -> None:
    prices, agreement = Prices(), OfTwo()
    one = Measured(prices, agreement, HostCopies())
    run(one, clock, ASK_EVERY_STEPS)
    assert not agreement.asked and not prices.prompts.units
    for _ in range(3):
        one.pass_begins()
    assert not agreement.asked
    run(one, clock, 1)
    assert agreement.asked == 1
    run(one, clock, ASK_EVERY_STEPS - 1)
    assert agreement.asked == 1
    run(one, clock, 1)
    assert agreement.asked == 2


def test_steps_that_decode_are_told_apart_by_how_many_requests(clock: Clock) -> None:
    prices = Prices()
    one = Measured(prices, OfTwo(), HostCopies())
    run(one, clock, 20, decodes=1)
    run(one, clock, ASK_EVERY_STEPS - 22, decodes=5)
    run(one, clock, 2, decodes=7)
    assert not prices.decodes
    run(one, clock, 1)
    fives = ASK_EVERY_STEPS - 22
    assert prices.decodes == {
        1: Steps(20, 0, 20, 3 * 5 * 20),
        3: Steps(fives + 2, 0, 5 * fives + 14, 3 * 5 * (fives + 2)),
    }


def test_a_step_that_waited_for_a_kernel_to_be_compiled_does_not_count(clock: Clock) -> None:
    prices = Prices()
    one = Measured(prices, Agreement(None), HostCopies())
    one.step_begins(decodes=1)
    clock.now += 10**9
    one.pass_begins()
    run(one, clock, ASK_EVERY_STEPS, decodes=1)
    assert prices.decodes[1] == Steps(ASK_EVERY_STEPS, 0, ASK_EVERY_STEPS, 5 * ASK_EVERY_STEPS)


def test_a_step_with_a_prompt_and_decodes_is_one(clock: Clock) -> None:
    prices = Prices()
    one = Measured(prices, Agreement(None), HostCopies())
    for _ in range(ASK_EVERY_STEPS + 1):
        one.step_begins(prompt_tokens=20)
        clock.now += 2
        one.step_begins(decodes=3)
        clock.now += 5
        one.pass_begins()
    steps = ASK_EVERY_STEPS
    assert prices.prefills == Steps(steps, 20 * steps, 3 * steps, 7 * steps)
    assert not prices.decodes


def test_a_step_whose_end_nobody_has_seen_does_not_count(clock: Clock) -> None:
    """SGLang may make a batch without asking for prompts first."""
    prices = Prices()
    one = Measured(prices, Agreement(None), HostCopies())
    for _ in range(ASK_EVERY_STEPS + 1):
        one.step_begins(decodes=3)
        clock.now += 100
        one.step_begins(decodes=2)
        clock.now += 5
        one.pass_begins()
    steps = ASK_EVERY_STEPS
    assert prices.decodes == {2: Steps(steps, 0, 2 * steps, 5 * steps)}


def test_stages_of_a_pipeline_learn_nothing_of_steps(clock: Clock) -> None:
    prices, agreement = Prices(), OfTwo()
    run(Measured(prices, agreement, HostCopies(), stages=2), clock, 3 * ASK_EVERY_STEPS)
    assert not agreement.asked and prices == Prices()


def test_ranks_that_learned_something_else_have_another_digest() -> None:
    one, other = (make_tiered(Full(), num_large=4, num_host=4) for _ in range(2))
    assert digest(one) == digest(other)
    one.prices.prompts.learn(20, 10)
    assert digest(one) != digest(other)
    other.prices.prompts.learn(20, 10)
    assert digest(one) == digest(other)
    other.prices.copies.learn(20, 10)
    assert digest(one) != digest(other)
    one.prices.copies.learn(20, 10)
    one.prices.learn_steps(Steps(), {1: Steps(1, 0, 1, 5)})
    assert digest(one) != digest(other)
