"""Where a server drafts tokens: room for them, the layers of a draft model, and its attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sglang.srt.runtime_context import attention_backends

from jenga_sglang import flags
from jenga_sglang.adapter.attention.drafts import as_chains
from jenga_sglang.adapter.cache import batch_alloc
from jenga_sglang.adapter.start import draft_layers
from jenga_sglang.hook import AROUND, hook


@hook(
    "sglang.srt.speculative.eagle_utils.alloc_for_spec_decode",
    (
        *("tree_cache", "req_to_token_pool", "reqs", "req_pool_indices", "cur_kv_lens"),
        *("cur_kv_lens_cpu", "nxt_kv_lens", "nxt_kv_lens_cpu", "num_needed_tokens", "batch"),
    ),
    AROUND,
    until="the allocator interface names the requests",
)
def _alloc_for_spec_decode(
    original: Callable[..., None], tree_cache: Any, *args: Any, reqs: Any, **kwargs: Any
) -> None:
    """Pages for drafts are placed per request, like all others"""
    starts, stops = kwargs["cur_kv_lens_cpu"].tolist(), kwargs["nxt_kv_lens_cpu"].tolist()
    batch_alloc.alloc_for_drafts(tree_cache, reqs, starts, stops)


@hook(
    "sglang.srt.managers.schedule_batch.ScheduleBatch.maybe_evict_swa",
    ("self",),
    AROUND,
    until="the prefix cache says that its windows slide by themselves",
)
def _maybe_evict_swa(original: Callable[..., None], batch: Any) -> None:
    """Windows slide when pages are handed out; SGLang would count them in tokens of a pool of its
    own"""


@hook(
    "sglang.srt.managers.scheduler.Scheduler.init_target_memory_pool",
    ("self",),
    AROUND,
    until="the pool of a target is told of its draft",
)
def _init_target_memory_pool(original: Callable[..., None], scheduler: Any) -> None:
    """The layers of a draft model, which is loaded by then, are further layers of the one pool"""
    with draft_layers.of_worker(scheduler.draft_worker):
        original(scheduler)


@hook(
    "sglang.srt.speculative.cpp_ngram.ngram_corpus.NgramCorpus.batch_get",
    ("self", "req_ids", "batch_tokens", "total_lens"),
    AROUND,
    until="SGLang can be asked for one continuation of one suffix",
)
def _batch_get(
    original: Callable[..., Any], corpus: Any, *args: Any, **kwargs: Any
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Even with one continuation of each suffix, those of several suffixes are a tree; kernels here
    verify chains"""
    drafts, mask = original(corpus, *args, **kwargs)
    if flags.TORCH_BACKEND in attention_backends():
        return drafts, mask
    return as_chains(drafts, mask, corpus.draft_token_num)


@hook(
    "sglang.srt.speculative.draft_utils.DraftBackendFactory._create_backend",
    ("self", "backend_name", "backend_map", "error_template", "stamps_children"),
    AROUND,
    until="SGLang has a registry of draft attention backends",
)
def _create_backend(
    original: Callable[..., Any],
    factory: Any,
    backend_name: str,
    backend_map: Any,
    error_template: str,
    stamps_children: bool = False,
) -> Any:
    """SGLang knows draft backends of its own only, which would take virtual token ids for places"""
    from jenga_sglang.adapter.attention import device_drafts, torch_drafts

    def build_torch() -> tuple[str, Any]:
        return flags.TORCH_BACKEND, torch_drafts.draft_backend(factory, for_steps=stamps_children)

    def build_on_device(name: str) -> tuple[str, Any]:
        return name, device_drafts.draft_backend(factory, name, for_steps=stamps_children)

    ours: dict[str, Any] = {flags.TORCH_BACKEND: build_torch}
    for name in (flags.TRITON_BACKEND, flags.FLASHINFER_BACKEND):
        ours[name] = partial(build_on_device, name)
    return original(factory, backend_name, ours, error_template, stamps_children)
