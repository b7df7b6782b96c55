"""Nobody gives way while a step in flight changes the recurrent state that would be saved."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import NextBatchPlan

from jenga_sglang.adapter.disagg import next_decode_batch


class Batch:
    """A running batch, with room for its next tokens or without. A request that has finished, whose
    result is in flight, has nothing to ask room for."""

    def __init__(self, *, fits: bool, finishing: int = 0, others: int = 1) -> None:
        self.fits = fits
        self.reqs = ["finishing"] * finishing + ["other"] * others

    def is_empty(self) -> bool:
        return not self.reqs

    def filter_batch(self, reqs_to_exclude: set[str]) -> None:
        self.reqs = [req for req in self.reqs if req not in reqs_to_exclude]

    def check_decode_mem(self) -> bool:
        assert "finishing" not in self.reqs
        return self.fits


class Scheduler:
    """Decodes what `update_running_batch` leaves; keeps the results of steps in flight."""

    def __init__(self, *, states: bool, in_flight: bool) -> None:
        pool = SimpleNamespace(states=object() if states else None)
        self.token_to_kv_pool_allocator = SimpleNamespace(get_kvcache=lambda: pool)
        self.result_queue = deque([object()] if in_flight else [])
        self.updated: list[Any] = []

    def _reqs_finishing_inflight(self, batch: Batch) -> set[str]:
        return {"finishing"}

    def update_running_batch(self, batch: Any) -> Any:
        self.updated.append(batch)
        return batch

    def next_batch(self, running_batch: Any) -> NextBatchPlan:
        running_batch = self.update_running_batch(running_batch)
        to_run = None if running_batch.is_empty() else running_batch
        return NextBatchPlan(batch_to_run=to_run, running_batch=running_batch)


def choose(scheduler: Scheduler, batch: Batch) -> NextBatchPlan:
    plan: NextBatchPlan = next_decode_batch(Scheduler.next_batch, scheduler, batch)
    assert plan.running_batch is batch
    assert "update_running_batch" not in vars(scheduler)
    return plan


def test_a_pass_that_would_retract_waits_for_the_step_in_flight() -> None:
    scheduler, batch = Scheduler(states=True, in_flight=True), Batch(fits=False, finishing=1)
    assert choose(scheduler, batch).batch_to_run is None
    assert not scheduler.updated
    scheduler.result_queue.clear()
    assert choose(scheduler, batch).batch_to_run is batch


@pytest.mark.parametrize(
    ("states", "in_flight", "fits"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_others_go_on(states: bool, in_flight: bool, fits: bool) -> None:
    scheduler, batch = Scheduler(states=states, in_flight=in_flight), Batch(fits=fits)
    assert choose(scheduler, batch).batch_to_run is batch
    assert scheduler.updated == [batch]


def test_a_batch_that_only_finishes_needs_no_room() -> None:
    scheduler = Scheduler(states=True, in_flight=True)
    batch = Batch(fits=False, finishing=2, others=0)
    assert choose(scheduler, batch).batch_to_run is None
    assert scheduler.updated == [batch]
