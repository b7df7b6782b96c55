"""The soft cap of a model's last logits, in plain torch."""

from __future__ import annotations

from typing import Any

import torch

from jenga_sglang.platform.late import after_import


def install() -> None:
    after_import("sglang.kernels.ops.activation.softcap", _change)


def _change(module: Any) -> None:
    # `softcap_inplace_logits` and its kin look this up when they are called.
    module._softcap_logits = soft_cap


def soft_cap(
    logits: torch.Tensor, cap: float | None, output: torch.Tensor | None = None
) -> torch.Tensor:
    """``cap * tanh(logits / cap)`` of any shape, into ``output`` or in place; without a cap the
    logits themselves. Computed in float32, returned in the dtype of where it goes."""
    capped = logits if cap is None else cap * (logits.float() / cap).tanh()
    return (logits if output is None else output).copy_(capped)
