"""Spares Triton's interpreter half of its time, and more: it makes the language interpreted once,
not at every launch of a kernel, remembers shapes and numpy's names of dtypes, and does not compute
every sum of integers a second time for a check that it then leaves out."""

import builtins
import math
import os
from dataclasses import replace
from functools import cache
from typing import Any

from triton._utils import validate_block_shape
from triton.language import core
from triton.runtime import interpreter

# Kernels of FlashInfer are stood in for, and nobody looks at what they would need to run.
os.environ.setdefault("SGLANG_FLASHINFER_WORKSPACE_SIZE", str(1 << 20))

_make_interpreted = interpreter._patch_lang
_NOTHING_TO_RESTORE = interpreter._LangPatchScope()


@cache
def _make_interpreted_once(function: Any) -> Any:
    _make_interpreted(function)
    return _NOTHING_TO_RESTORE


@cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """The shape of a tensor and its number of elements, as kernels see them."""
    shape = core.tuple([core.constexpr(size) for size in sizes])
    return shape, core.constexpr(math.prod(sizes))


def _init_tensor(self: Any, handle: Any, type: Any) -> None:
    sizes = builtins.tuple(type.shape.values) if type.is_block() else ()
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _shape(sizes)


@cache
def _block(sizes: tuple[int, ...], of: str) -> tuple[Any, int, str]:
    shape = core.tuple(sizes)
    return shape, validate_block_shape(shape), f"<{shape}, {of}>"


def _init_block(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = builtins.tuple(core._unwrap_shape(shape))
    if not sizes:
        raise TypeError("0d block_type is forbidden")
    self.element_ty = element_ty
    self.shape, self.numel, self.name = _block(sizes, str(element_ty))


_look_up_dtype, _dtypes = interpreter._get_np_dtype, dict[str, Any]()


def _get_np_dtype(dtype: Any) -> Any:
    if dtype.name not in _dtypes:
        _dtypes[dtype.name] = _look_up_dtype(dtype)
    return _dtypes[dtype.name]


# The check is a `device_assert`, which does nothing without the option `debug`.
_builder = interpreter.interpreter_builder
_builder.options = replace(_builder.options, sanitize_overflow=_builder.options.debug)
interpreter._patch_lang = _make_interpreted_once
interpreter._get_np_dtype = _get_np_dtype
core.tensor.__init__ = _init_tensor
core.block_type.__init__ = _init_block
