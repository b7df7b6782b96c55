"""One line in the log when requests wait and nothing at all is computed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from jenga_sglang import flags
from jenga_sglang.core.stats import describe_room

logger = logging.getLogger(__name__)

SECONDS_VARIABLE = "JENGA_WATCHDOG_SECONDS"
DEFAULT_SECONDS = 30.0


class Watchdog:
    """Progress is what the scheduler computes, its count of forward passes; the wall clock only
    says for how long there was none, and decides nothing."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._forward_passes = -1
        self._since = 0.0
        self._said = False

    @classmethod
    def from_environment(cls) -> Watchdog:
        """``JENGA_WATCHDOG_SECONDS``; 0 switches it off. Raises ``SystemExit`` for anything that
        is not a number of seconds."""
        text = os.environ.get(SECONDS_VARIABLE, str(DEFAULT_SECONDS))
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise flags.refuse(
                f"{SECONDS_VARIABLE}={text}", "is not a number of seconds, 0 or more"
            )
        return cls(seconds)

    def look(self, scheduler: Any) -> None:
        """After an admission pass: log once per standstill, as soon as it has lasted."""
        now = self._clock()
        if scheduler.forward_ct != self._forward_passes or not scheduler.waiting_queue:
            self._forward_passes, self._since, self._said = scheduler.forward_ct, now, False
        elif self.seconds and not self._said and now - self._since >= self.seconds:
            self._said = True
            logger.warning(standstill(scheduler, now - self._since))


def standstill(scheduler: Any, seconds: float) -> str:
    """The line: how long, the request that blocks and why, and every group's numbers."""
    from jenga_sglang.adapter.waiting import queue_facts

    queue = queue_facts(scheduler)
    head = queue["head"]
    return (
        f"jenga watchdog: {queue['waiting_requests']} requests wait and nothing was computed for "
        f"{seconds:.0f} s; {queue['running_requests']} run. Next is request {head['request_id']} "
        f"({head['prompt_tokens']} prompt tokens, {head['max_new_tokens']} new at most): "
        f"{head['reason']}. {describe_room(scheduler.token_to_kv_pool_allocator.manager)}"
    )
