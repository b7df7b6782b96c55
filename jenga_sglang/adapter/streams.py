"""Points in time of the work that steps and copies are: what lies between two took so long.

On a CPU work is done when its call returns. On a GPU it lies on the stream of the forward passes,
on which one step follows the other: an event there tells when the step before it has ended.
"""

from __future__ import annotations

import time
from typing import Any

import torch


class HostWork:
    """Of a device whose every call returns when its work is done."""

    def mark(self) -> Any:
        """A point in time of the work that has been asked for."""
        return time.perf_counter_ns()

    def ns_between(self, began: Any, ended: Any) -> int:
        """Nanoseconds from one mark to another; waits until the work has got there."""
        return int(ended - began)


class StreamWork(HostWork):
    """Of a GPU. ``stream`` is the one of the forward passes; None where they run on the current
    one."""

    def __init__(self, device: torch.device, stream: Any) -> None:
        self._device, self._own_stream = device, stream
        self._module = torch.get_device_module(device)

    @property
    def _stream(self) -> Any:
        return self._own_stream or self._module.current_stream()

    def mark(self) -> Any:
        event = self._module.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def ns_between(self, began: Any, ended: Any) -> int:
        ended.synchronize()
        return int(began.elapsed_time(ended) * 1e6)
