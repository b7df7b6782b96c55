"""Bytes that a backend moves or clears on the device.

On an accelerator these are kernels, not host time, and here nobody reads the bytes: so the work is
counted and not done. Sizes are those of the shrunk dummy model until they are reported.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class DeviceWork:
    """KV bytes copied from page to page, KV bytes cleared before a page is handed out, and bytes
    written to host memory and loaded from it."""

    moved_bytes: int = 0
    zeroed_bytes: int = 0
    written_bytes: int = 0
    loaded_bytes: int = 0
    # Seconds that the steps so far compute, and that one byte takes to or from the host.
    computed_seconds: float = 0.0
    seconds_per_host_byte: float = 0.0

    @property
    def host_bytes(self) -> int:
        """Bytes copied to or from the host so far."""
        return self.written_bytes + self.loaded_bytes

    @property
    def copy_seconds(self) -> float:
        """How long all copies to and from the host take, as if nothing ran beside them and both
        directions shared the wire."""
        return self.host_bytes * self.seconds_per_host_byte

    def perf_counter_ns(self) -> int:
        """The simulated time of whoever measures copies and steps, in place of the clock's."""
        return int(1e9 * (self.computed_seconds + self.copy_seconds))

    def copy_pages(
        self, raw: Any, tgt_pages: Any, src_pages: Any, num_pages: int, page_bytes: int
    ) -> None:
        """Stand in for SGLang's `copy_pages` kernel."""
        self.moved_bytes += int(tgt_pages.numel()) * page_bytes

    def zero_pages(self, raw: Any, pages: Any, num_pages: int, page_bytes: int) -> None:
        """Stand in for SGLang's `zero_pages` kernel."""
        self.zeroed_bytes += int(pages.numel()) * page_bytes

    def copy_states(self, pool: Any, src_indices: Any, dst_indices: Any) -> None:
        """Stand in for `copy_from` of SGLang's pools of recurrent states."""
        state = pool.mamba_cache
        slot_bytes = sum(t[:, 0].nbytes for t in (*state.conv, state.temporal))
        self.moved_bytes += int(dst_indices.numel()) * slot_bytes


# A process replays once, so one counter is enough.
DEVICE_WORK = DeviceWork()
