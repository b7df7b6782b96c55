"""A storage backend of SGLang's, opened for the pages of one pool."""

from __future__ import annotations

import hashlib
from typing import Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
from sglang.srt.runtime_context import get_parallel, get_server_args, get_serving

from jenga_sglang import settings, storage_flags
from jenga_sglang.adapter.cache.storage_tier import (
    PREFETCH_POLICIES,
    Fetched,
    PrefetchRules,
    StorageTier,
)
from jenga_sglang.adapter.host_pool import HostPool
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.storage.objects import ByAddress, ByValue, Objects, Window
from jenga_sglang.adapter.storage.page_store import SEAL_BYTES, PageStore
from jenga_sglang.adapter.storage.workers import Traffic

FORMAT = "jenga 1"  # of objects and their keys
TAG_HEX = 16


def open_storage(
    host: HostPool,
    backend: str,
    *,
    extra_config: str | None,
    model_name: str | None,
    policy: str,
    agreement: Agreement,
    traffic: Traffic,
    fetched: Fetched,
) -> StorageTier:
    """Storage below ``host``. ``extra_config`` is what `--hicache-storage-backend-extra-config`
    takes. Raises where SGLang's backend does, and ``ValueError`` for what does not work here."""
    if policy not in PREFETCH_POLICIES:
        raise ValueError(f"{policy} is none of {', '.join(PREFETCH_POLICIES)}")
    parsed = HybridCacheController.parse_storage_backend_extra_config(extra_config)
    more, threshold, seconds, seconds_per_1024, pass_prefix_keys = parsed
    if why := storage_flags.why_not(backend, more, pass_prefix_keys=pass_prefix_keys):
        raise ValueError(why)
    if folder := get_server_args().file_storage_path:
        more.setdefault("file_storage_path", folder)
    model_name = model_name or get_serving().served_model_name
    store = PageStore(_objects(backend, host, _config(backend, model_name, more)))
    silence = settings.current().storage_seconds
    rules = PrefetchRules(policy, threshold, seconds, seconds_per_1024, silence)
    named = tags(host.pool, model_name)
    return StorageTier(host, store, named, rules, agreement, traffic, fetched)


def _objects(backend: str, host: HostPool, config: HiCacheStorageConfig) -> Objects:
    create = StorageBackendFactory.create_backend
    if backend not in storage_flags.BY_ADDRESS:
        return ByValue(create(backend, config, host))
    most_bytes = max(cut.page_bytes for cut in host.manager.geometry.groups)
    window = Window(most_bytes + SEAL_BYTES)
    return ByAddress(create(backend, config, window), window)


def _config(backend: str, model_name: str, more: dict[str, Any]) -> HiCacheStorageConfig:
    rank, size = _ranks()
    return HiCacheStorageConfig(
        tp_rank=rank,
        tp_size=size,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        # Every rank stores what it has itself. Where objects are not split into K and V, SGLang
        # says so by this name.
        is_mla_model=backend in storage_flags.BY_ADDRESS,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name=model_name,
        extra_config=more,
    )


def _ranks() -> tuple[int, int]:
    parallel = get_parallel()
    return parallel.attn_tp_rank, parallel.attn_tp_size


def tags(pool: JengaKVPool, model_name: str) -> list[str]:
    """What tells the pages of each group of ``pool`` from those of any other cut, model or rank:
    everything that says what a page's bytes mean."""
    geometry = pool.manager.geometry
    of_all = (FORMAT, model_name, _ranks(), str(pool.dtype), geometry.page_size)
    facts = []
    for g, cut in enumerate(geometry.groups):
        states = pool.states.discovered if pool.states is not None else None
        facts.append(repr((*of_all, cut, pool.groups.get(g, states))))
    return [hashlib.sha256(fact.encode()).hexdigest()[:TAG_HEX] for fact in facts]
