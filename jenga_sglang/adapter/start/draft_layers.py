"""The attention layers of a draft model, in the pool of the model that verifies its drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.kv_cache_configurator import _InitializedPools

from jenga_sglang.adapter.discovery import attention_layers, latent_row

# Heads of models with recurrent layers, whose config they share, that have attention only.
_ATTENTION_ONLY = frozenset({"Qwen3NextForCausalLMMTP", "Qwen3_5ForCausalLMMTP"})

_runners: list[Any] = []  # of this process's draft worker, while the pool is built


@contextmanager
def of_worker(worker: Any) -> Iterator[None]:
    """Meanwhile everything here is about the models that ``worker``, or None, drafts with."""
    _runners[:] = () if worker is None else worker._draft_model_runners()
    try:
        yield
    finally:
        _runners.clear()


def has_recurrent_layers() -> bool:
    """Whether a draft model has recurrent layers."""
    return any(
        mambaish_config(runner.model_config) is not None
        and _ATTENTION_ONLY.isdisjoint(runner.model_config.hf_config.architectures)
        for runner in _runners
    )


def has_latent_rows_beside(target: Any) -> bool:
    """Whether a draft model has latent attention (MLA) with other rows than those of its target,
    whose pools this configurator makes."""
    rows = [row for runner in _runners if (row := latent_row(runner))]
    return any(row != latent_row(target) for row in rows)


def layers_after(target: Sequence[RadixAttention]) -> list[RadixAttention]:
    """The layers of all draft models, numbered on from those of the ``target``: everything that is
    kept of a layer goes by its number, and one pool serves all."""
    layers: list[RadixAttention] = []
    for runner in _runners:
        first = 1 + max(layer.layer_id for layer in (*target, *layers))
        own = {id(layer): layer for layer in attention_layers(runner.model)}
        for layer in own.values():
            layer.layer_id += first
        layers += own.values()
    return layers


def pools_of_target(rows: Any, allocator: Any) -> Any:
    """What `_init_pools` returns for a draft model."""
    return _InitializedPools(
        req_to_token_pool=rows,
        token_to_kv_pool=allocator.get_kvcache(),
        token_to_kv_pool_allocator=allocator,
    )
