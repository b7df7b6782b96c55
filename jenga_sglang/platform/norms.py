"""Norms whose torch version in SGLang is missing, or leaves a factor out."""

from __future__ import annotations

from typing import Any

import torch

from jenga_sglang.platform.late import after_import


def install() -> None:
    after_import("sglang.srt.layers.layernorm", _change_layernorm)
    after_import("sglang.srt.models.minimax_m2", _change_minimax_m2)


def _change_layernorm(module: Any) -> None:
    module.Gemma4RMSNorm.forward_native = gemma4_norm


def _change_minimax_m2(module: Any) -> None:
    module.rms_sumsq_serial = mean_squares
    module.rms_apply_serial = normalize


def gemma4_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last dimension, times the weight: Gemma-4's router writes its scale into
    the weight of a norm that is made without one, which SGLang's kernel multiplies by and its
    torch version does not."""
    return (self._norm(x.float()) * (self.weight.float() + self.scale_shift)).type_as(x)


def mean_squares(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Mean squares of q (tokens, Dq) and then of k (tokens, Dk), in float32: (2 · tokens)."""
    return torch.cat([x.float().square().mean(-1) for x in (q, k)])


def normalize(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    mean_squares: torch.Tensor,
    tp_world: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norms of q and k (tokens, dim) with given mean squares, summed over ``tp_world`` ranks.
    Each in its own shape and dtype."""
    tokens = len(q)
    squares = mean_squares / tp_world

    def norm(x: torch.Tensor, weight: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return (x.float() * (square[:, None] + eps).rsqrt() * weight.float()).to(x.dtype)

    return (
        norm(q, q_weight, squares[:tokens]),
        norm(k, k_weight, squares[tokens : 2 * tokens]),
    )
