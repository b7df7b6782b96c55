"""Gates and gated norms of linear attention in plain torch, for a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import silu


def install() -> None:
    """Put these operators where SGLang's models import theirs from, before any is imported."""
    from sglang.kernels.ops.attention.fla import fused_norm_gate, layernorm_gated
    from sglang.kernels.ops.elementwise import elementwise

    fused_norm_gate.rms_norm_gated = fused_norm
    layernorm_gated.rms_norm_gated = grouped_norm
    elementwise.fused_sigmoid_mul = sigmoid_mul
    elementwise.fused_gate_sigmoid_mul = shared_expert
    elementwise.fused_gate_sigmoid_mul_add = add_shared_expert


def fused_norm(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: str = "swish",
    residual: torch.Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> torch.Tensor:
    """RMS norm over the last dimension, times the activated gate ``g``; x's shape and dtype."""
    if residual is not None or prenorm:
        raise NotImplementedError("the CPU platform's gated norm takes no residual")
    y = _affine(_unit_variance(x.float(), eps), weight, bias)
    return (y * _activate(g.reshape(x.shape), activation)).to(x.dtype)


def grouped_norm(
    *,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    z: torch.Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> torch.Tensor:
    """Norm of groups of the last dimension, gated by ``z`` before or after; x's shape and dtype."""
    y = x.float()
    gate = None if z is None else _activate(z.reshape(x.shape), activation)
    if gate is not None and not norm_before_gate:
        y = y * gate
    y = y.unflatten(-1, (-1, group_size or x.shape[-1]))
    y = y if is_rms_norm else y - y.mean(-1, keepdim=True)
    y = _affine(_unit_variance(y, eps).flatten(-2), weight, bias)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


def sigmoid_mul(
    attn_output: torch.Tensor, gate: torch.Tensor, inplace: bool = False, **kwargs: Any
) -> torch.Tensor:
    """``attn_output`` (tokens, channels) times the sigmoid of ``gate``, flat or by head."""
    if kwargs.get("quant"):
        raise NotImplementedError("the CPU platform's gate does not quantize")
    gate = gate.reshape(attn_output.shape).float().sigmoid()
    result = (attn_output.float() * gate).to(attn_output.dtype)
    return attn_output.copy_(result) if inplace else result


def shared_expert(
    hidden_states: torch.Tensor, gate_weight: torch.Tensor, shared_output: torch.Tensor
) -> torch.Tensor:
    """``shared_output`` (tokens, hidden) times the sigmoid of each token's gate, the product of
    ``hidden_states`` (tokens, hidden) and ``gate_weight`` (1, hidden)."""
    gate = (hidden_states.float() @ gate_weight.reshape(-1, 1).float()).sigmoid()
    return (shared_output.float() * gate).to(shared_output.dtype)


def add_shared_expert(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add `shared_expert` to ``final_hidden_states`` (tokens, hidden), in place."""
    final_hidden_states += shared_expert(hidden_states, gate_weight, shared_output)


def _unit_variance(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def _affine(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    x = x if weight is None else x * weight.float()
    return x if bias is None else x + bias.float()


def _activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    return gate.float().sigmoid() if activation == "sigmoid" else silu(gate.float())
