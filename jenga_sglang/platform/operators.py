"""Recurrent layers in plain torch, for a CPU: what SGLang has as Triton and CUDA kernels only.

Token by token where the kernels work in chunks: slow, and as exact as it gets. Under
``TRITON_INTERPRET=1`` SGLang's own convolution runs instead; its other kernels ask for a device.
"""

from __future__ import annotations

import os
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch.nn.functional import conv1d, silu, softplus

from jenga_sglang.platform import (
    batch_invariant,
    delta_rule,
    dp_attention,
    experts,
    gates,
    logits,
    norms,
    rope,
    seeded_draws,
    sizes,
    speculative,
    torch_functions,
)

PAD_SLOT = -1


def install() -> None:
    """Put these operators where SGLang's recurrent layers look for theirs."""
    from sglang.kernels.ops.mamba import causal_conv1d_triton, triton_ops

    # Models and linear-attention backends import these from here; they are not imported yet.
    _bind(triton_ops, selective_state_update=selective_state_update)
    if os.environ.get("TRITON_INTERPRET") != "1":
        _bind(
            causal_conv1d_triton,
            causal_conv1d_fn=causal_conv1d_fn,
            causal_conv1d_update=causal_conv1d_update,
        )
    for others in (
        batch_invariant,
        delta_rule,
        dp_attention,
        gates,
        experts,
        logits,
        norms,
        rope,
        seeded_draws,
        sizes,
        speculative,
        torch_functions,
    ):
        others.install()
    from sglang.srt.layers.attention.mamba import causal_conv1d, mamba

    convolve = causal_conv1d_triton.causal_conv1d_fn
    update = causal_conv1d_triton.causal_conv1d_update
    _bind(causal_conv1d, _causal_conv1d_fn_triton=convolve, _causal_conv1d_update_triton=update)
    # On a platform that it does not know this module binds none of these.
    _bind(
        mamba,
        causal_conv1d_fn=causal_conv1d.causal_conv1d_fn,
        causal_conv1d_update=causal_conv1d.causal_conv1d_update,
        causal_conv1d_fn_triton=convolve,
        causal_conv1d_update_triton=update,
        mamba_chunk_scan_combined=mamba_chunk_scan_combined,
        selective_state_update=selective_state_update,
    )


def _bind(module: ModuleType, **functions: Any) -> None:
    for name, function in functions.items():
        setattr(module, name, function)


def _activate(x: torch.Tensor, activation: str | bool | None) -> torch.Tensor:
    return silu(x) if activation in ("silu", "swish", True) else x


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_states: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Any,
    cache_indices: torch.Tensor,
    has_initial_state: torch.Tensor | None = None,
    activation: str | bool | None = "silu",
    pad_slot_id: int = PAD_SLOT,
    **kwargs: Any,
) -> torch.Tensor:
    """Depthwise causal convolution of sequences laid end to end; updates their states in place.

    x: (channels, tokens). weight: (channels, width). conv_states: (slots, channels, width - 1),
    strided. query_start_loc: (sequences + 1). Returns (channels, tokens) in x's dtype.
    """
    out = torch.zeros_like(x)
    bounds = query_start_loc.tolist()
    before = weight.shape[1] - 1
    for number, slot in enumerate(cache_indices.tolist()):
        start, stop = bounds[number], bounds[number + 1]
        if slot == pad_slot_id or start == stop:
            continue
        state = conv_states[slot, :, -before:]
        resumes = has_initial_state is not None and bool(has_initial_state[number])
        history = state.to(x.dtype) if resumes else x.new_zeros(state.shape)
        window = torch.cat((history, x[:, start:stop]), 1)
        convolved = conv1d(window[None], weight[:, None].to(x.dtype), bias, groups=len(x))[0]
        out[:, start:stop] = _activate(convolved, activation)
        state.copy_(window[:, -before:])
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | bool | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
    pad_slot_id: int = PAD_SLOT,
    **kwargs: Any,
) -> torch.Tensor:
    """One more token for every sequence; updates their states in place.

    x: (sequences, channels). Otherwise as `causal_conv1d_fn`. Raises ``NotImplementedError`` for
    several tokens at once and for circular states.
    """
    if x.dim() != 2 or cache_seqlens is not None or conv_state_indices is None:
        raise NotImplementedError("the CPU platform convolves one token at a time")
    kept = conv_state_indices != pad_slot_id
    slots = conv_state_indices[kept].long()
    before = weight.shape[1] - 1
    window = torch.cat((conv_state[slots][..., -before:].to(x.dtype), x[kept, :, None]), -1)
    convolved = (window * weight.to(x.dtype)).sum(-1)
    out = torch.zeros_like(x)
    out[kept] = _activate(convolved if bias is None else convolved + bias, activation)
    conv_state[slots, :, -before:] = window[..., 1:].to(conv_state.dtype)
    return out


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    out: torch.Tensor | None = None,
    state_dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> tuple[None, torch.Tensor, None]:
    """Mamba-2's scan over sequences laid end to end. Writes ``out``; returns the final states.

    x: (1, tokens, heads, dim). dt: (1, tokens, heads). A: (heads,). B, C: (1, tokens, groups, n).
    initial_states: (sequences, heads, dim, n). Returns (None, states, None), what callers unpack.
    """
    assert cu_seqlens is not None and out is not None and z is None
    bounds = cu_seqlens.tolist()
    finals = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        state = x.new_zeros(*x.shape[2:], B.shape[-1], dtype=torch.float32)
        if initial_states is not None:
            state = initial_states[number].float()
        for t in range(start, stop):
            state, y = _mamba_step(
                state[None],
                x[:, t],
                _time_step(dt[:, t], dt_bias, dt_softplus),
                A[:, None, None],
                B[:, t],
                C[:, t],
                None if D is None else D[:, None],
            )
            state = state[0]
            out[:, t] = y.to(out.dtype)
        finals.append(state)
    return None, torch.stack(finals).to(state_dtype or torch.float32), None


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: torch.Tensor | None = None,
    pad_slot_id: int = PAD_SLOT,
    out: torch.Tensor | None = None,
    **kwargs: Any,
) -> None:
    """One more token for every sequence: updates ``state`` in place and writes ``out``.

    state: (slots, heads, dim, n), strided. x, z, dt, out: (sequences, heads, dim). A: (heads, dim,
    n). B, C: (sequences, groups, n). D, dt_bias: (heads, dim).
    """
    if x.dim() != 3 or state_batch_indices is None or out is None:
        raise NotImplementedError("the CPU platform moves Mamba states one token at a time")
    kept = state_batch_indices != pad_slot_id
    slots = state_batch_indices[kept].long()
    step = _time_step(dt[kept], dt_bias, dt_softplus)
    new, y = _mamba_step(state[slots].float(), x[kept], step[..., 0], A, B[kept], C[kept], D)
    state[slots] = new.to(state.dtype)
    out[kept] = (y if z is None else y * silu(z[kept].float())).to(out.dtype)


def _time_step(dt: torch.Tensor, bias: torch.Tensor | None, soft: bool) -> torch.Tensor:
    step = dt.float() if bias is None else dt.float() + bias.float()
    return softplus(step) if soft else step


def _mamba_step(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """state (b, heads, dim, n) and x (b, heads, dim) → the next state and y (b, heads, dim).

    dt: (b, heads). A broadcasts to (heads, dim, n), D to (heads, dim). B, C: (b, groups, n).
    """
    repeats = x.shape[1] // B.shape[1]
    b = B.float().repeat_interleave(repeats, 1)[:, :, None]
    c = C.float().repeat_interleave(repeats, 1)[:, :, None]
    step = dt[..., None, None]
    state = state * torch.exp(step * A.float()) + step * x.float()[..., None] * b
    y = (state * c).sum(-1)
    return state, y if D is None else y + x.float() * D.float()
