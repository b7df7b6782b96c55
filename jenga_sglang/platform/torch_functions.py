"""Functions of torch that SGLang's models call in ways a CPU does not answer."""

from __future__ import annotations

import functools
from typing import Any

import torch


def install() -> None:
    torch.get_device_module = device_module(torch.get_device_module)
    torch.mm = wide_mm(torch.mm)
    torch.cuda.synchronize = wait_for_nothing


def device_module(original: Any) -> Any:
    """`torch.get_device_module` whose answer for no device is the CPU's: a build of torch for CUDA
    names CUDA on a machine without one."""

    # torch's own is cached, and its compiler looks for what it wraps.
    @functools.cache
    def get_device_module(device: torch.device | str | None = None) -> Any:
        return torch.cpu if device is None else original(device)

    return get_device_module


def wait_for_nothing(device: torch.device | str | int | None = None) -> None:
    """`torch.cuda.synchronize` without a device: models call it when they share their embedding
    with a layer that drafts."""


def wide_mm(original: Any) -> Any:
    """`torch.mm` that takes ``out_dtype`` on a CPU: the product of both in that dtype."""

    @functools.wraps(original)
    def mm(input: torch.Tensor, mat2: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out_dtype = kwargs.pop("out_dtype", None)
        if out_dtype is None:
            return original(input, mat2, *args, **kwargs)
        return original(input.to(out_dtype), mat2.to(out_dtype), *args, **kwargs)

    return mm
