"""The watchdog, against a scheduler that stands still by a clock of the test's own."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from core_builders import begin, make_manager, tokens

from jenga_sglang.adapter.cache.admission_pass import Admission, Refusal
from jenga_sglang.adapter.cache.watchdog import Watchdog
from jenga_sglang.core.admission import weigh
from jenga_sglang.core.dependency import Full


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def scheduler() -> Any:
    """Four large pages, three of them used; the next request asks for two."""
    manager = make_manager(Full(), num_large=4)
    begin(manager, tokens(1, 2, 3))
    admission = Admission(manager)
    admission.now.refusal = Refusal(weigh(manager, [0], [2]), "memory", 1)
    head = SimpleNamespace(
        rid="the-one",
        origin_input_ids=[1, 2],
        output_ids=[],
        sampling_params=SimpleNamespace(max_new_tokens=5),
        time_stats=SimpleNamespace(wait_queue_entry_time=0.0),
    )
    return SimpleNamespace(
        forward_ct=7,
        waiting_queue=[head],
        running_batch=SimpleNamespace(reqs=["running"]),
        chunked_req=None,
        max_running_requests=9,
        grammar_manager=SimpleNamespace(grammar_queue=[]),
        _engine_paused=False,
        token_to_kv_pool_allocator=SimpleNamespace(manager=manager),
        tree_cache=SimpleNamespace(admission=admission, awaits_storage=lambda req: False),
    )


def look(scheduler: Any, watchdog: Watchdog, clock: Clock, *times: float) -> None:
    for clock.now in times:
        watchdog.look(scheduler)


def test_one_line_per_standstill_with_who_waits_and_why(
    scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    watchdog = Watchdog(10, clock)
    look(scheduler, watchdog, clock, 0, 5, 9.9)
    assert not caplog.records
    look(scheduler, watchdog, clock, 10, 11, 50)
    (record,) = caplog.records
    line = record.getMessage()
    assert record.levelno == logging.WARNING and "\n" not in line
    for part in ("1 requests wait", "for 10 s", "1 run", "the-one", "2 prompt tokens"):
        assert part in line
    assert "asks for 2 large pages (group0 2)" in line and "1 too few" in line
    assert "group0: 3 large pages, small pages 3 used 0 cached 0 free" in line

    scheduler.forward_ct += 1
    look(scheduler, watchdog, clock, 51, 60)
    assert len(caplog.records) == 1
    look(scheduler, watchdog, clock, 61)
    assert len(caplog.records) == 2


def test_progress_and_an_empty_queue_are_no_standstill(
    scheduler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    watchdog = Watchdog(10, clock)
    for clock.now in range(0, 100, 5):
        scheduler.forward_ct += 1
        watchdog.look(scheduler)
    scheduler.waiting_queue = []
    look(scheduler, watchdog, clock, 200, 300)
    assert not caplog.records


def test_zero_switches_it_off(scheduler: Any, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    look(scheduler, Watchdog(0, clock), clock, 0, 1000)
    assert not caplog.records
