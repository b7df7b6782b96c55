"""Jenga's host tier in a replay: copies are counted and not made, for nobody reads the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.replay.moved import DEVICE_WORK


def install() -> None:
    """Patch this process, before the scheduler exists."""
    import torch

    from jenga_sglang.adapter import host_copies, host_pool
    from jenga_sglang.adapter.start import host_tier

    host_pool.HostPool.run = _count  # type: ignore[method-assign]
    nothing = torch.empty(0, dtype=torch.uint8)
    host_copies.HostCopies.allocate = lambda self, num_bytes: nothing  # type: ignore[method-assign]
    host_tier.available_host_memory_bytes = lambda **kwargs: 1 << 60  # type: ignore[assignment]


def _count(pool: Any, copies: Iterable[Any]) -> None:
    groups = pool.manager.geometry.groups
    for copy in copies:
        copied = len(copy.host) * groups[copy.group].small_page_bytes
        if copy.to_host:
            DEVICE_WORK.written_bytes += copied
        else:
            DEVICE_WORK.loaded_bytes += copied
