"""Gated delta nets in plain torch, for a CPU: what SGLang has as Triton and CUDA kernels only.

The state of a head is a matrix S (value dim, key dim). A token first lets it fade, then replaces
what S holds for its key by its own value, as far as beta says::

    S ← S · exp(g)        g: one number a head (gated delta net), or one per key dimension (KDA)
    S ← S + beta (v - S k) kᵀ
    o = S q / √(key dim)

Token by token where the kernels work in chunks: slow, and as exact as it gets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import softplus

NORM_EPSILON = 1e-6


def install() -> None:
    """Put these operators where SGLang's models and backends import theirs from.

    Must run before any of them is imported."""
    from sglang.kernels.ops.attention import triton_gdn_fused_proj as projections
    from sglang.kernels.ops.attention.fla import chunk, fused_recurrent, kda

    try:
        from sglang.kernels.ops.attention.linear import fused_gdn_gating as gating
    except ImportError:  # SGLang 0.5.22
        from sglang.kernels.ops.attention.fla import fused_gdn_gating as gating

    chunk.chunk_gated_delta_rule = chunk_gated_delta_rule
    fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode = gated_delta_decode
    fused_recurrent.fused_recurrent_kda_packed_decode = kda_decode
    gating.fused_gdn_gating = gdn_gates
    kda.chunk_kda = chunk_kda
    projections.fused_qkvzba_split_reshape_cat = split_by_head
    projections.fused_qkvzba_split_reshape_cat_contiguous = split_by_kind


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None, None]:
    """The rule over sequences laid end to end; updates their states in place.

    q, k: (1, tokens, key heads, key dim). v: (1, tokens, heads, value dim). g: (1, tokens, heads)
    or (1, tokens, heads, key dim), log decay. beta: (1, tokens, heads). initial_state: (slots,
    heads, value dim, key dim), strided. cu_seqlens: (sequences + 1). Slots below 0 are skipped.
    Returns (outputs (1, tokens, heads, value dim) in v's dtype, None, None): what callers unpack.
    """
    heads = v.shape[2]
    decay = g[0].float().exp()
    decay = decay[..., None, None] if decay.dim() == 2 else decay[..., None, :]
    query, key = (_unit(x[0], heads) for x in (q, k))
    query = query * k.shape[-1] ** -0.5
    value, share = v[0].float(), beta[0].float()[..., None]
    out = torch.zeros_like(v)
    slots = initial_state_indices.tolist()
    for slot, (start, stop) in zip(slots, pairwise(cu_seqlens.tolist()), strict=True):
        if slot < 0 or start == stop:
            continue
        state = initial_state[slot].float()
        for t in range(start, stop):
            state, o = _step(state, query[t], key[t], value[t], decay[t], share[t])
            out[0, t] = o.to(out.dtype)
        initial_state[slot] = state.to(initial_state.dtype)
    return out, None, None


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    beta_is_raw: bool = False,
    output_intermediate_states: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """`chunk_gated_delta_rule` with a decay per key dimension; with ``A_log``, g comes before its
    activation. Returns the outputs."""
    if output_intermediate_states:
        raise NotImplementedError("the CPU platform keeps no states between the tokens of a step")
    if A_log is not None:
        g = kda_log_decay(g, A_log, dt_bias, lower_bound)
    beta = beta.float().sigmoid() if beta_is_raw else beta
    out, _, _ = chunk_gated_delta_rule(
        q, k, v, g, beta, initial_state, initial_state_indices, cu_seqlens
    )
    return out


def gated_delta_decode(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor,
    out: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One more token for every sequence; updates states in place and writes ``out``.

    mixed_qkv: (sequences, 2 · key heads · key dim + heads · value dim). a, b: (sequences, heads).
    out: (sequences, 1, heads, value dim).
    """
    g, beta = gdn_gates(A_log, a, b, dt_bias)
    _decode(mixed_qkv, g[0], beta[0], initial_state, out, ssm_state_indices)
    return out, initial_state


def kda_decode(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor,
    out: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    lower_bound: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gated_delta_decode` with a (sequences, heads · key dim), a decay per key dimension."""
    g = kda_log_decay(a.unflatten(-1, (out.shape[2], -1)), A_log, dt_bias, lower_bound)
    _decode(mixed_qkv, g, b.float().sigmoid(), initial_state, out, ssm_state_indices)
    return out, initial_state


def gdn_gates(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """a, b: (tokens, heads) → log decay and beta, (1, tokens, heads) float32 each."""
    g = -A_log.float().exp() * softplus(a.float() + dt_bias.float())
    return g[None], b.float().sigmoid()[None]


def kda_log_decay(
    g: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor | None, lower_bound: float | None
) -> torch.Tensor:
    """g: (..., heads, key dim) before its activation → log decay, float32."""
    g = g.float()
    if dt_bias is not None:
        g = g + dt_bias.float().view(g.shape[-2:])
    rate = A_log.float().view(-1, 1).exp()
    return -rate * softplus(g) if lower_bound is None else lower_bound * torch.sigmoid(rate * g)


def split_by_kind(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projections laid out [q | k | v | z] and [b | a] → qkv, z (tokens, heads, dim), b and a."""
    value = num_heads_v * head_v
    qkv, z = mixed_qkvz.split([2 * num_heads_qk * head_qk + value, value], -1)
    b, a = mixed_ba.chunk(2, -1)
    return qkv.contiguous(), z.unflatten(-1, (num_heads_v, head_v)), b.contiguous(), a.contiguous()


def split_by_head(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`split_by_kind` for projections that come [q | k | v | z] and [b | a] for each key head."""
    share = num_heads_v // num_heads_qk
    q, k, v, z = mixed_qkvz.unflatten(-1, (num_heads_qk, -1)).split(
        [head_qk, head_qk, share * head_v, share * head_v], -1
    )
    b, a = mixed_ba.unflatten(-1, (num_heads_qk, -1)).chunk(2, -1)
    qkv = torch.cat([x.flatten(-2) for x in (q, k, v)], -1)
    return qkv, z.reshape(len(z), num_heads_v, head_v), b.flatten(-2), a.flatten(-2)


def _decode(
    mixed_qkv: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    out: torch.Tensor,
    indices: torch.Tensor,
) -> None:
    """g: (sequences, heads) or (sequences, heads, key dim). beta: (sequences, heads)."""
    _, heads, value_dim, key_dim = states.shape
    width = heads * value_dim
    q, k, v = mixed_qkv.split([(mixed_qkv.shape[1] - width) // 2] * 2 + [width], -1)
    q, k = (_unit(x.unflatten(-1, (-1, key_dim)), heads) for x in (q, k))
    decay = g.exp()
    decay = decay[..., None, None] if g.dim() == 2 else decay[..., None, :]
    kept = indices >= 0
    slots = indices[kept].long()
    new, o = _step(
        states[slots].float(),
        q[kept] * key_dim**-0.5,
        k[kept],
        v[kept].unflatten(-1, (heads, value_dim)).float(),
        decay[kept],
        beta[kept][..., None],
    )
    states[slots] = new.to(states.dtype)
    out.zero_()
    out[kept, 0] = o.to(out.dtype)


def _unit(x: torch.Tensor, heads: int) -> torch.Tensor:
    """x: (tokens, key heads, dim) → (tokens, heads, dim) float32, every vector of length one."""
    x = x.float()
    x = x * (x.square().sum(-1, keepdim=True) + NORM_EPSILON).rsqrt()
    return x.repeat_interleave(heads // x.shape[1], 1)


def _step(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """state (…, heads, value dim, key dim), q and k (…, heads, key dim), v (…, heads, value dim),
    decay broadcasting to the state, beta (…, heads, 1) → the next state and the output like v."""
    state = state * decay
    error = v - (state @ k[..., None])[..., 0]
    state = state + (beta * error)[..., None] * k[..., None, :]
    return state, (state @ q[..., None])[..., 0]
