"""Spares Triton's interpreter half of its time: it looks up once what it looks up at every launch
of a kernel (which members of the language are to be replaced, what numpy calls a dtype), and does
not compute every sum of integers a second time for a check that it then leaves out."""

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

from triton import language
from triton.runtime import interpreter


@cache
def _builtins(package: Any) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in inspect.getmembers(package) if language.core.is_builtin(m)]


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    for name, member in _builtins(package):
        interpreter._patch_attr(package, name, member, builder, scope)


_look_up_dtype, _dtypes = interpreter._get_np_dtype, dict[str, Any]()


def _get_np_dtype(dtype: Any) -> Any:
    if dtype.name not in _dtypes:
        _dtypes[dtype.name] = _look_up_dtype(dtype)
    return _dtypes[dtype.name]


# The check is a `device_assert`, which does nothing without the option `debug`.
_builder = interpreter.interpreter_builder
_builder.options = replace(_builder.options, sanitize_overflow=_builder.options.debug)
interpreter._patch_builtin = _patch_builtin
interpreter._get_np_dtype = _get_np_dtype
