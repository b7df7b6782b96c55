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
from jenga_sglang.adapter.hooks import recurrent
from jenga_sglang.adapter.start import draft_layers
from jenga_sglang.adapter.states import JengaReqToTokenPool
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


@hook(
    "sglang.srt.speculative.spec_utils.commit_mamba_states_after_verify",
    (
        *("target_worker", "batch", "accept_lens", "accept_index", "draft_token_num"),
        "prepared_step_indices",
    ),
    AROUND,
    until="the linear-attention backend is told what was accepted of which requests",
)
def _commit_mamba_states_after_verify(
    original: Callable[..., None],
    target_worker: Any,
    batch: Any,
    accept_lens: Any,
    accept_index: Any,
    *args: Any,
    **kwargs: Any,
) -> None:
    """A request's one state moves on by what it has accepted; SGLang would look for a state behind
    every draft"""
    runner = target_worker.model_runner
    if not isinstance(runner.req_to_token_pool, JengaReqToTokenPool):
        return
    from jenga_sglang.adapter.attention.state_backend import accept_drafts

    if not batch.forward_mode.is_idle():
        accept_drafts(runner.attn_backend, batch, accept_lens, accept_index)


@hook(
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.load_batch",
    ("self", "forward_batch", "pp_proxy_tensors"),
    AROUND,
    until="a backend is told of the host's rows before a replay",
)
def _load_graph(
    original: Callable[..., None], runner: Any, forward_batch: Any, *rest: Any, **named: Any
) -> None:
    """A step that verifies is loaded before it runs, and with it the places of states, by rows
    that backends get on the device only"""
    backend = recurrent.backend_of(runner.attn_backend)
    if backend is not None:
        backend.before_replay(forward_batch)
    original(runner, forward_batch, *rest, **named)


@hook(
    "sglang.srt.models.lfm2.shortconv_target_verify",
    ("conv", "Bx", "meta", "draft_token_num", "arch"),
    AROUND,
    until="the model calls its backend",
)
def _shortconv_target_verify(
    original: Callable[..., Any], conv: Any, tokens: Any, meta: Any, *args: Any, **kwargs: Any
) -> Any:
    """LFM2 would write a state behind every draft; here drafts are computed as a prompt is"""
    from sglang.srt.layers.attention.mamba.causal_conv1d import causal_conv1d_fn

    computed = causal_conv1d_fn(
        tokens.transpose(0, 1).contiguous(),
        conv.conv_weight,
        conv.conv_bias,
        query_start_loc=meta.query_start_loc,
        cache_indices=meta.cache_indices,
        has_initial_state=meta.has_initial_state,
        conv_states=meta.layer_cache.conv[0],
        activation=None,
    )
    return computed.transpose(0, 1)
