"""The prefix cache and the attention backends, on SGLang's public registries.

Attention backends are imported when one is built: they bring kernels that no other process needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.arg_groups.choices import (
    ATTENTION_BACKEND_CHOICES,
    add_attention_backend_choices,
    add_deterministic_attention_backend_choices,
    add_radix_supported_deterministic_attention_backend_choices,
)
from sglang.srt.layers.attention.attention_registry import (
    ATTENTION_BACKENDS,
    register_attention_backend,
)
from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    get_radix_cache_factory,
    register_radix_cache_backend,
)
from sglang.srt.runtime_context import get_exec, get_memory, get_schedule

from jenga_sglang import flags, settings, storage_flags
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.adapter.cache.tiered_cache import JengaTieredCache
from jenga_sglang.adapter.host_copies import HostCopies, StreamCopies
from jenga_sglang.adapter.host_pool import HostPool
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.streams import HostWork, StreamWork
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.refusal import refuse


def register_backends() -> None:
    """Put the prefix cache and the attention backends on their registries, once a process."""
    if get_radix_cache_factory(flags.RADIX_CACHE_BACKEND) is not None:
        return
    register_radix_cache_backend(flags.RADIX_CACHE_BACKEND, _build_prefix_cache)
    if flags.TORCH_BACKEND not in ATTENTION_BACKEND_CHOICES:  # a command line has named it
        add_attention_backend_choices([flags.TORCH_BACKEND])
    add_deterministic_attention_backend_choices([flags.TORCH_BACKEND])
    add_radix_supported_deterministic_attention_backend_choices([flags.TORCH_BACKEND])
    register_attention_backend(flags.TORCH_BACKEND)(_build_torch_backend)
    for name, build in (
        (flags.TRITON_BACKEND, _build_triton_backend),
        (flags.FLASHINFER_BACKEND, _build_flashinfer_backend),
        (flags.FA3_BACKEND, _build_fa3_backend),
    ):
        register_attention_backend(name)(_on_jenga_pages(build, ATTENTION_BACKENDS[name]))


def _build_prefix_cache(context: TreeCacheBuildContext) -> Any:
    pool = context.params.token_to_kv_pool_allocator.get_kvcache()
    if not isinstance(pool, JengaKVPool):
        raise refuse(
            "--radix-cache-backend jenga", f"runs on Jenga pools; start with {flags.FLAG} jenga"
        )
    pool.manager.prefix_cache = not context.disable_radix_cache
    runner = context.tp_worker.model_runner
    if isinstance(pool.manager, TieredManager):
        copies = _copies(runner)
        poison_freed = settings.current().poison_freed
        host = HostPool(pool, pool.manager, copies, poison_freed=poison_freed)
        return _with_storage(JengaTieredCache(context.params, pool.manager, host))
    return JengaPrefixCache(context.params, pool.manager, _work(runner))


def _work(runner: Any) -> HostWork:
    if runner.device == "cpu":
        return HostWork()
    return StreamWork(torch.device(runner.device), _forward_stream(runner))


def _copies(runner: Any) -> HostCopies:
    if runner.device == "cpu":
        return HostCopies()
    return StreamCopies(torch.device(runner.device), _forward_stream(runner))


def _forward_stream(runner: Any) -> Any:
    """Steps run on a stream of their own where the next one is prepared meanwhile; None where they
    run on the current one."""
    return None if get_schedule().disable_overlap_schedule else runner.forward_stream


def _with_storage(cache: JengaTieredCache) -> JengaTieredCache:
    backend = get_memory().hicache_storage_backend
    if backend is None:
        return cache
    attached, why = cache.attach_storage_backend(
        backend, get_memory().hicache_storage_backend_extra_config
    )
    if not attached:
        raise refuse(f"{storage_flags.FLAG} {backend}", why)
    return cache


def _build_torch_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.attention.lone_queries import LoneQueries
    from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend

    return (LoneQueries if _is_deterministic() else JengaTorchBackend)(runner)


def _build_triton_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.attention.fixed_tiles import FixedTiles
    from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend

    return (FixedTiles if _is_deterministic() else JengaTritonBackend)(runner)


def _is_deterministic() -> bool:
    return bool(get_exec().deterministic.enable_deterministic_inference)


def _build_flashinfer_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.attention.flashinfer_backend import JengaFlashInferBackend

    return JengaFlashInferBackend(runner)


def _build_fa3_backend(runner: Any) -> Any:
    from jenga_sglang.adapter.attention.fa3_backend import JengaFA3Backend

    return JengaFA3Backend(runner)


def _on_jenga_pages(build: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """A name of SGLang's: ours on our pools, SGLang's on its own."""

    def choose(runner: Any) -> Any:
        is_ours = isinstance(runner.token_to_kv_pool, JengaKVPool)
        return build(runner) if is_ours else stock(runner)

    return choose
