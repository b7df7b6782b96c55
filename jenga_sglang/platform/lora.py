"""LoRA on a machine without an accelerator: SGLang's layers and its torch backend ask for pinned
memory, which there is none of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

FACTORIES = ("tensor", "empty", "zeros", "arange")


class UnpinnedTorch:
    """The module `torch` for code that asks for pinned memory: it gets ordinary memory."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        return _unpinned(found) if name in FACTORIES else found


def install() -> None:
    """Replace what LoRA's modules know as `torch`; a tensor that is to be pinned stays as it is."""
    from sglang.srt.lora import layers
    from sglang.srt.lora.backend import torch_backend

    for module in (layers, torch_backend):
        vars(module)["torch"] = UnpinnedTorch()
    torch.Tensor.pin_memory = _stay


def _unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make_unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return make(*args, **kwargs)

    return make_unpinned


def _stay(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    return tensor
