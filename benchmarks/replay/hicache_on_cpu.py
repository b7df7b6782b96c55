"""Lets SGLang's own host tier, ``--enable-hierarchical-cache``, run in a replay.

What it decides stays SGLang's. Copies are counted and not made, for nobody reads the bytes; host
pools have their sizes and no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.replay.moved import DEVICE_WORK
from benchmarks.replay.spec import RunSpec

# Nothing is allocated, so no host is too small.
UNLIMITED_BYTES = 1 << 60


def arguments(spec: RunSpec) -> dict[str, Any]:
    """Fields of `ServerArgs` that put the run's host bytes below the pool."""
    if not spec.host_bytes:
        return {}
    return {
        "enable_hierarchical_cache": True,
        "hicache_ratio": spec.host_bytes / spec.kv_bytes,
        "hicache_write_policy": spec.write_policy,
        "hicache_io_backend": "direct",
        # The one layout that takes states as well as rows.
        "hicache_mem_layout": "page_first_direct",
    }


def install(spec: RunSpec) -> None:
    """Patch this process, after the arguments are published and before the scheduler exists."""
    if not spec.host_bytes:
        return
    from sglang.srt.mem_cache import l2_transfer
    from sglang.srt.mem_cache.allocator import unified_sub_pool
    from sglang.srt.mem_cache.pool_host import base, common, mamba, mha, unified

    for module in (base, mamba, unified):
        module.host_memory_budget_bytes = lambda *args, **kwargs: UNLIMITED_BYTES
    for module in (common, mamba, mha, unified):
        module.ALLOC_MEMORY_FUNCS = _Allocations()
    l2_transfer.L2TransferEngine.submit_device_to_host = _write
    l2_transfer.L2TransferEngine.submit_host_to_device = _load
    unified_sub_pool.MultiEndedAllocator._wait_hicache_transfers = _have_ended


def host_bytes(scheduler: Any) -> int:
    """Bytes of SGLang's host pools; 0 without."""
    group = getattr(scheduler.tree_cache, "host_pool_group", None)
    if group is None:
        return 0
    shared: dict[int, int] = {}
    for entry in group.entries:
        pool = entry.host_pool
        backing = getattr(pool, "_shared_backing", None)
        if backing is None:
            shared[id(pool)] = pool.size * pool.size_per_token
        else:
            shared[id(backing)] = backing.capacity_bytes
    return sum(shared.values())


class _Allocations:
    """In place of SGLang's table of functions that allocate host memory."""

    def __getitem__(self, device: object) -> Any:
        return _allocate


def _allocate(dims: Any, *, dtype: Any, device: str, **kwargs: Any) -> Any:
    """A tensor of that shape without memory of its own: every element is the same one."""
    import torch

    if len(dims) == 1:
        return _SharedHost()
    return torch.empty(1, dtype=dtype, device=device).expand(dims)


class _SharedHost:
    """In place of the bytes that unified memory's host pools share, and pack by copying."""

    def __getitem__(self, key: object) -> Any:
        return self

    def view(self, *shape: int) -> Any:
        return self

    def clone(self) -> Any:
        return self

    def copy_(self, source: object) -> Any:
        return self


def _have_ended(self: Any) -> None:
    """What was counted has been copied."""
    self._hicache_transfer_done_events.clear()


def _write(self: Any, transfers: Iterable[Any]) -> Any:
    DEVICE_WORK.written_bytes += _bytes(transfers)
    return _done()


def _load(
    self: Any,
    transfers: Iterable[Any],
    *,
    transfer_layer_id_max: int,
    on_layer_done: Any = None,
    **kwargs: Any,
) -> Any:
    DEVICE_WORK.loaded_bytes += _bytes(transfers)
    for layer in range(transfer_layer_id_max if on_layer_done else 0):
        on_layer_done(layer)
    return _done()


def _bytes(transfers: Iterable[Any]) -> int:
    return sum(len(t.host_indices) * t.host_pool.size_per_token for t in transfers)


def _done() -> Any:
    from sglang.srt.mem_cache.l2_transfer import TransferCompletion, make_timing_event_pair

    begin, end, timing = make_timing_event_pair()
    begin.record()
    end.record()
    return TransferCompletion(begin, end, timing)
