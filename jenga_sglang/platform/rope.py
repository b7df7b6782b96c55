"""Rotary positions: what SGLang's classes expect of them on a device, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jenga_sglang.platform.late import after_import

# What `get_rope_cpu` takes, in order; `get_rope` takes the same but for the device.
_GET_ROPE_CPU = (
    "head_size",
    "rotary_dim",
    "max_position",
    "base",
    "is_neox_style",
    "rope_scaling",
    "dtype",
    "partial_rotary_factor",
    "device",
)


def install() -> None:
    after_import("sglang.srt.layers.rotary_embedding.factory", _change_factory)
    after_import("sglang.srt.models.llama4", _change_llama4)


def _change_factory(module: Any) -> None:
    module.get_rope_cpu = without_yarn(module.get_rope, module.get_rope_cpu)


def _change_llama4(module: Any) -> None:
    module.get_rope = in_place(module.get_rope)


def without_yarn(get_rope: Callable[..., Any], get_rope_cpu: Callable[..., Any]) -> Any:
    """SGLang's rotary embeddings for models with latent attention on a CPU, which know DeepSeek's
    YaRN only: all others are those of any device. Takes what `get_rope_cpu` takes."""

    def rope_for_cpu(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_GET_ROPE_CPU, args, strict=False)) | kwargs
        scaling = given.get("rope_scaling")
        if scaling and scaling.get("rope_type", scaling.get("type")) == "deepseek_yarn":
            return get_rope_cpu(**given)
        given.pop("device", None)
        return get_rope(**given)

    return rope_for_cpu


class InPlaceRope(torch.nn.Module):
    """A rotary embedding that also writes its results over its inputs, as CUDA kernels do and
    Llama-4 relies on: there they are views of one tensor, which goes on to the attention."""

    def __init__(self, rope: torch.nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def forward(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """positions (tokens), q (tokens, Hq · D), k (tokens, Hk · D); returns the inputs."""
        rotated_q, rotated_k = self.rope(positions, q, k)
        return q.copy_(rotated_q), k.copy_(rotated_k)


def in_place(get_rope: Callable[..., torch.nn.Module]) -> Callable[..., InPlaceRope]:
    """``get_rope`` whose embeddings write in place."""
    return lambda *args, **kwargs: InPlaceRope(get_rope(*args, **kwargs))
