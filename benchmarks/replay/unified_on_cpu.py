"""Lets SGLang's `--enable-unified-memory` run on CPU tensors.

Two Triton kernels are replaced by SGLang's own torch versions of them, the two that only move or
clear KV bytes are counted instead of run, nobody waits for a step in flight, for none is on a CPU,
and the refusal of out-of-tree platforms is lifted. All decisions stay SGLang's.
"""

from typing import Any

from benchmarks.replay.moved import DEVICE_WORK

# The flag accepts only backends that read through its page tables; none is ever built here.
ACCEPTED_ATTENTION_BACKEND = "triton"
RUN_ATTENTION_BACKEND = "torch_native"


def install() -> None:
    """Patch this process. Call after the arguments are published, before the scheduler exists."""
    from sglang.srt.mem_cache import kv_cache_configurator, unified_memory_pool
    from sglang.srt.mem_cache.allocator import unified_sub_pool
    from sglang.srt.runtime_context import get_context

    # Chooses SGLang's torch code paths outside the unified pool.
    get_context().override("replay", attention_backend=RUN_ATTENTION_BACKEND)
    kv_cache_configurator.reject_out_of_tree_path = lambda *args, **kwargs: None
    unified_sub_pool.alloc_extend_kernel = _ExtendKernel()
    unified_sub_pool.alloc_decode_kernel = _DecodeKernel()
    unified_sub_pool.MultiEndedAllocator._settle_inflight_forward = _settle
    unified_memory_pool.copy_pages = DEVICE_WORK.copy_pages
    unified_memory_pool.zero_pages = DEVICE_WORK.zero_pages


def _settle(allocator: Any) -> None:
    """What SGLang's own does once its stream has waited for the step before."""
    if allocator._latest_forward_done_event is not None:
        allocator._inflight_forward = None


class _ExtendKernel:
    """Called like the Triton kernel: `kernel[grid](…)`."""

    def __getitem__(self, grid: object) -> Any:
        return _alloc_extend


class _DecodeKernel:
    """Called like the Triton kernel: `kernel[grid](…)`."""

    def __getitem__(self, grid: object) -> Any:
        return _alloc_decode


def _alloc_extend(
    prefix_lens: Any,
    seq_lens: Any,
    last_loc: Any,
    free_pages: Any,
    out_indices: Any,
    _block: int,
    page_size: int,
) -> None:
    from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive

    alloc_extend_naive(
        prefix_lens, seq_lens, last_loc, free_pages, out_indices, page_size, out_indices.device
    )


def _alloc_decode(
    seq_lens: Any, last_loc: Any, free_pages: Any, out_indices: Any, _block: int, page_size: int
) -> None:
    from sglang.srt.mem_cache.allocator.paged import alloc_decode_naive

    new_pages = int(((seq_lens - 1) % page_size == 0).sum())
    alloc_decode_naive(seq_lens, last_loc, free_pages, out_indices, page_size, new_pages)
