"""One line in the log when requests wait and nothing at all is computed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jenga_sglang.core.stats import describe_room

if TYPE_CHECKING:
    from jenga_sglang.adapter.sglang_views import SchedulerView

logger = logging.getLogger(__name__)


class Watchdog:
    """Progress is what the scheduler computes, its count of forward passes; the wall clock only
    says for how long there was none, and decides nothing. With 0 ``seconds`` it says nothing."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._forward_passes = -1
        self._since = 0.0
        self._said = False

    def look(self, scheduler: SchedulerView) -> None:
        """After an admission pass: log once per standstill, as soon as it has lasted."""
        now = self._clock()
        if scheduler.forward_ct != self._forward_passes or not scheduler.waiting_queue:
            self._forward_passes, self._since, self._said = scheduler.forward_ct, now, False
        elif self.seconds and not self._said and now - self._since >= self.seconds:
            self._said = True
            logger.warning(standstill(scheduler, now - self._since))


def standstill(scheduler: SchedulerView, seconds: float) -> str:
    """The line: how long, the request that blocks and why, and every group's numbers."""
    from jenga_sglang.adapter.cache.waiting import queue_facts

    queue = queue_facts(scheduler)
    head = queue["head"]
    return (
        f"jenga watchdog: {queue['waiting_requests']} requests wait and nothing was computed for "
        f"{seconds:.0f} s; {queue['running_requests']} run. Next is request {head['request_id']} "
        f"({head['prompt_tokens']} prompt tokens, {head['max_new_tokens']} new at most): "
        f"{head['reason']}. {describe_room(scheduler.token_to_kv_pool_allocator.manager)}"
    )
