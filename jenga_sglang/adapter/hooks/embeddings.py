"""For models that put what a vision encoder makes into the text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from sglang.srt.managers import mm_schedule

from jenga_sglang.adapter.cache.embeddings import PoolEmbeddings
from jenga_sglang.hook import AFTER, AROUND, hook

BUILD_KV_CACHE = (
    *("server_args", "model_config", "tp_worker", "page_size", "spec_algorithm"),
    *("enable_metrics", "enable_kv_cache_events", "enable_hierarchical_cache"),
    *("hicache_draft_plan", "dynamo_kv_event_format", "kv_event_lora_names"),
)


@hook(
    "sglang.srt.mem_cache.kv_cache_builder.build_kv_cache",
    (*BUILD_KV_CACHE, "draft_swa_window"),
    AFTER,
    by_version={"<0.5.23": BUILD_KV_CACHE},
    until="SGLang has a registry of embedding caches",
)
def _build_kv_cache(
    result: Any,
    *,
    tp_worker: Any,
    enable_kv_cache_events: bool,
    enable_hierarchical_cache: bool,
    **kwargs: Any,
) -> None:
    """Embeddings of images are cached in the pool instead of 100 MB beside it. Not where events
    tell of it: an embedding has no tokens that a router could look for. Nor over host memory,
    whose groups are those that the pool began with."""
    if not enable_kv_cache_events and not enable_hierarchical_cache:
        stock = mm_schedule.embedding_cache
        pool = tp_worker.model_runner.token_to_kv_pool
        mm_schedule.embedding_cache = PoolEmbeddings(pool, stock.max_size)


@hook(
    "sglang.srt.managers.mm_schedule._get_chunked_prefill_embedding",
    (
        *("data_embedding_func", "embedding_items", "items_size", "prefix_length"),
        *("extend_length", "items_offset_list", "input_ids"),
    ),
    AROUND,
    until="the embedding cache is told",
)
def _get_chunked_prefill_embedding(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Embeddings that a step has read to their ends are not needed any more, and go first."""
    result = original(*args, **kwargs)
    cache = mm_schedule.embedding_cache
    if isinstance(cache, PoolEmbeddings):
        names = inspect.signature(mm_schedule._get_chunked_prefill_embedding).parameters
        given = dict(zip(names, args, strict=False)) | kwargs
        lengths = zip(given["prefix_length"], given["extend_length"], strict=False)
        stops = [prefix + extend for prefix, extend in lengths]
        cache.look_at_step(given["embedding_items"], given["items_size"], stops)
    return result
