"""The pool in place of SGLang's: all that a registry of memory backends makes unnecessary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from jenga_sglang.adapter.start import draft_layers
from jenga_sglang.adapter.start.build import build_pools
from jenga_sglang.hook import AFTER, AROUND, hook

CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"


@hook(
    "sglang.srt.model_executor.pool_configurator.MemoryPoolConfigurator.validate_swa_pool_size",
    ("swa_tokens", "sliding_window_size", "page_size"),
    AROUND,
    until="the pool says what the least is that it needs",
)
def _check_no_window_pool(original: Callable[..., None], *args: Any) -> None:
    """Only the bytes of the stock pools count, whose window pool would be too small for a request;
    whether ours is, Jenga says."""


@hook(
    f"{CONFIGURATOR}._init_pools",
    ("self", "sizes", "req_to_token_pool", "token_to_kv_pool_allocator"),
    AROUND,
    until="SGLang has a registry for pools and allocators",
)
def _init_pools(
    original: Callable[..., Any], configurator: Any, *, sizes: Any, **reused: Any
) -> Any:
    """Builds the pool and its allocator; there is no registry for either."""
    if configurator.is_draft_worker:
        return draft_layers.pools_of_target(
            reused["req_to_token_pool"], reused["token_to_kv_pool_allocator"]
        )
    return build_pools(configurator, sizes)


@hook(
    f"{CONFIGURATOR}.configure",
    ("self", "pre_model_load_memory"),
    AFTER,
    until="the pool reports its own capacity",
)
def _configure(result: Any, configurator: Any, **kwargs: Any) -> Any:
    """The scheduler counts in virtual tokens: as many as the pool can name, in place of the stock
    pool's."""
    return msgspec.structs.replace(
        result,
        max_total_num_tokens=result.token_to_kv_pool.size,
        full_max_total_num_tokens=None,
        swa_max_total_num_tokens=None,
    )


@hook(
    "sglang.srt.model_executor.model_runner.ModelRunner.init_kv_cache_configurator",
    ("self", "draft_parallel_layout"),
    AFTER,
    by_version={"<0.5.23": ("self",)},
    until="the pool says whether it is hybrid",
)
def _forget_hybrid_swa(result: None, runner: Any, *args: Any, **kwargs: Any) -> None:
    """The configurator has taken note of the stock window pool, whose bytes ours must equal;
    nobody after it may look for a second pool."""
    runner.is_hybrid_swa = False
