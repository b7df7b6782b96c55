"""SGLang's own host tier on a CPU: what it needs of CUDA is put aside, its decisions are kept."""

from typing import Any

FLAGS = {
    "memory_backend": "default",
    "enable_hierarchical_cache": True,
    "hicache_ratio": 8.0,
    "hicache_write_policy": "write_through",
    "hicache_io_backend": "direct",
    "hicache_mem_layout": "layer_first",
}


def run_on_cpu() -> None:
    """Patch this process: memory that is not registered with CUDA, and copies in plain torch."""
    from sglang.srt.mem_cache.pool_host import base, mha

    init = base.HostKVCache.__init__

    def without_pinning(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs | {"pin_memory": False})

    base.HostKVCache.__init__ = without_pinning
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0
    mha.transfer_kv_direct = _copy


def _copy(
    src_layers: Any, dst_layers: Any, src_indices: Any, dst_indices: Any, page_size: int
) -> None:
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.long()] = source[src_indices.long()]
