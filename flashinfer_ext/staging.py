"""Pinned memory that a planner may write while an earlier copy from it is still under way.

FlashInfer's `plan` writes a schedule into one pinned buffer and enqueues its copy to the device.
A host that runs ahead of the device would overwrite the schedule of a step before it was copied.
Here every plan takes the next buffer of a ring, and waits only when the copy that used this very
buffer, `depth` plans ago, has not run yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Event(Protocol):
    """What the ring needs of a CUDA event."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class PinnedRing:
    """`depth` pinned buffers of `num_bytes`, handed out in turn.

    With `depth` one more than the number of steps in flight, no plan ever waits; `waits` counts
    those that did.
    """

    def __init__(
        self,
        num_bytes: int,
        depth: int,
        device: torch.device,
        make_event: Callable[[], Event] | None = None,
    ) -> None:
        if num_bytes < 1 or depth < 2:
            raise ValueError(f"expected bytes >= 1 and depth >= 2, got {num_bytes} and {depth}")
        on_device = device.type == "cuda"
        self.buffers_cpu = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_device) for _ in range(depth)
        ]
        self._make_event = make_event or (torch.cuda.Event if on_device else None)
        self._events: list[Event | None] = [None] * depth
        self._next = 0
        self.waits = 0

    @contextmanager
    def buffer(self) -> Iterator[torch.Tensor]:
        """The next buffer, (num_bytes,) uint8 pinned; copies from it are enqueued in the block."""
        index = self._next
        self._next = (index + 1) % len(self.buffers_cpu)
        event = self._events[index]
        if event is not None and not event.query():
            self.waits += 1
            event.synchronize()
        yield self.buffers_cpu[index]
        if self._make_event is not None:
            event = event or self._make_event()
            event.record()
            self._events[index] = event
