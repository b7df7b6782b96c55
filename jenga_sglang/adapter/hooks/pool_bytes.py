"""Who else than the attention backends writes the pool's bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE

from jenga_sglang.hook import AFTER, AROUND, hook


@hook(
    "sglang.srt.models.utils.enable_fused_set_kv_buffer",
    ("forward_batch",),
    AROUND,
    until="the pool says whether it takes fused writes",
)
def _enable_fused_set_kv_buffer(original: Callable[..., bool], forward_batch: Any) -> bool:
    """The kernel that rotates and stores in one go would take virtual token ids for places; the
    attention backend knows the page tables."""
    return False


@hook(
    "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
    ".resume_memory_occupation",
    ("self", "recv_req"),
    AFTER,
    until="SGLang tells the pool that its memory is back",
)
def _resume_memory_occupation(result: Any, updater: Any, recv_req: Any) -> None:
    """With `--enable-memory-saver` the pool's bytes are anything after
    `/resume_memory_occupation`; fresh states begin as copies of the null page, and kernels read it
    where a page is missing, so it must be zeros."""
    if GPU_MEMORY_TYPE_KV_CACHE not in updater.offload_tags:
        updater.scheduler.token_to_kv_pool_allocator.get_kvcache().zero_null_pages()
