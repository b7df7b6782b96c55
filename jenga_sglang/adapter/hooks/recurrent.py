"""For models with recurrent layers, whose states are in the pool.

`adapter/attention/state_backend.py` is imported when one is built: it brings the kernels of every
such model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from jenga_sglang.adapter.start.build import most_working_states
from jenga_sglang.adapter.states import JengaReqToTokenPool
from jenga_sglang.hook import AFTER, AROUND, hook

BACKEND_SETUP = "sglang.srt.model_executor.model_runner_components.attention_backend_setup"
CONVOLUTION = "sglang.srt.layers.attention.mamba.causal_conv1d"
BACKEND_REGISTRY = "there is a registry of linear-attention backends"
MODEL_CALLS = "the model calls its backend"


@hook(
    "sglang.srt.mem_cache.kv_cache_builder.uses_ssm_state",
    ("model_config",),
    AROUND,
    until="the pool says whether it is hybrid",
)
def _uses_ssm_state(original: Callable[..., bool], model_config: Any) -> bool:
    """The scheduler must not look for a second pool: states are in ours."""
    return False


@hook(
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator.resolve_max_num_reqs",
    ("self", "token_capacity"),
    AROUND,
    until="the pool says how many requests it takes",
)
def _resolve_max_num_reqs(
    original: Callable[..., int], configurator: Any, token_capacity: int
) -> int:
    """SGLang sets up to five states aside for every request that may run, and runs no more than its
    pool of states has room for so. Here a request takes one from shared memory, and snapshots
    what is left."""
    config = configurator.mambaish_config
    if config is None:
        return original(configurator, token_capacity)
    configurator.mambaish_config = None
    try:
        most = original(configurator, token_capacity)
    finally:
        configurator.mambaish_config = config
    return min(most, most_working_states(configurator, token_capacity))


@hook(
    f"{BACKEND_SETUP}.attn_backend_wrapper",
    ("runner", "full_attn_backend"),
    AROUND,
    until=BACKEND_REGISTRY,
)
def _attn_backend_wrapper(original: Callable[..., Any], runner: Any, full_attn_backend: Any) -> Any:
    """Recurrent layers run in rounds, from snapshot to snapshot, on states in our pool; SGLang
    chooses the linear-attention backend by the model's config. The head of such a model, which
    drafts, has attention only."""
    if not isinstance(runner.req_to_token_pool, JengaReqToTokenPool):
        return original(runner, full_attn_backend)
    if runner.is_draft_worker:
        return full_attn_backend
    from jenga_sglang.adapter.attention.state_backend import refuse_graphs, replace_linear_backend

    refuse_graphs()
    # SGLang's hybrid backend reads both off the attention backend.
    full_attn_backend.token_to_kv_pool = runner.token_to_kv_pool
    full_attn_backend.req_to_token_pool = runner.req_to_token_pool
    backend = original(runner, full_attn_backend)
    replace_linear_backend(backend, runner)
    return backend


@hook(f"{BACKEND_SETUP}.build_attention_backends", ("model_runner",), AFTER, until=BACKEND_REGISTRY)
def _build_attention_backends(backends: Any, *, model_runner: Any) -> Any:
    """A model without attention layers gets its backend, which SGLang builds directly, past
    `attn_backend_wrapper`."""
    if not isinstance(model_runner.req_to_token_pool, JengaReqToTokenPool):
        return None
    from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend

    from jenga_sglang.adapter.attention.state_backend import JengaMamba2Backend, refuse_graphs

    if type(backends.attn_backend) is not Mamba2AttnBackend:
        return None
    refuse_graphs()
    return msgspec.structs.replace(backends, attn_backend=JengaMamba2Backend(model_runner))


@hook(
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.execute",
    ("self", "forward_batch", "pp_proxy_tensors"),
    AROUND,
    until="a backend is told of the host's rows before a replay, and of its end",
)
def _execute_graph(
    original: Callable[..., Any], runner: Any, forward_batch: Any, *rest: Any, **named: Any
) -> Any:
    """A request's state is found by its row, which backends get on the device only; and snapshots
    of states are copied behind the replay that has brought them there."""
    backend = backend_of(runner.attn_backend)
    if backend is None:
        return original(runner, forward_batch, *rest, **named)
    backend.before_replay(forward_batch)
    output = original(runner, forward_batch, *rest, **named)
    backend.after_replay()
    return output


def backend_of(attn_backend: Any) -> Any:
    """The part of an attention backend that runs recurrent layers on Jenga's states, or None."""
    if not isinstance(getattr(attn_backend, "req_to_token_pool", None), JengaReqToTokenPool):
        return None
    from jenga_sglang.adapter.attention.state_backend import recurrent_backend

    return recurrent_backend(attn_backend)


@hook(
    f"{CONVOLUTION}.causal_conv1d_fn",
    (
        *("x", "weight", "bias", "query_start_loc", "cache_indices"),
        *("has_initial_state", "conv_states", "activation", "pad_slot_id", "kwargs"),
    ),
    AROUND,
    until=MODEL_CALLS,
)
@hook(
    f"{CONVOLUTION}.causal_conv1d_update",
    (
        *("x", "conv_state", "weight", "bias", "activation", "cache_seqlens"),
        *("conv_state_indices", "pad_slot_id"),
    ),
    AROUND,
    until=MODEL_CALLS,
)
def _short_convolution(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Convolutions run in rounds too, and LFM2 calls the kernel itself, wherever it imported it
    from."""
    from jenga_sglang.adapter.attention.state_backend import convolution_backend

    backend = convolution_backend()
    return (
        backend.run_convolution(original, *args, **kwargs) if backend else original(*args, **kwargs)
    )


@hook(
    "sglang.srt.models.lfm2_moe.can_dispatch_fused_lfm_short_conv",
    ("b", "c", "x", "weight", "bias", "state"),
    AROUND,
    until=MODEL_CALLS,
)
def _can_dispatch_fused_lfm_short_conv(
    original: Callable[..., bool], *args: Any, **kwargs: Any
) -> bool:
    """Gates and convolution in one kernel leave no place for a snapshot between."""
    return False
