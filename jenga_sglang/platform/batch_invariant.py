"""What `--enable-deterministic-inference` asks of torch's operators, on a CPU: that a row of a
result has the same bits whichever rows are computed beside it.

SGLang registers Triton kernels for this, which need a device. Here every row is computed by itself:
the product of a matrix and a vector has one shape, and so one order of its sums, whatever the
batch; and what torch computes several numbers at a time, and the last few one by one with another
approximation, begins anew in each row. A prompt is slower by that, for a matrix is read once a
token. Norms and softmax need nothing: torch reduces the last dimension row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jenga_sglang.platform.late import after_import

# Kept as long as the process: torch forgets what a library registered when it is collected.
_registered: list[torch.library.Library] = []


def install() -> None:
    after_import("sglang.srt.batch_invariant_ops", _change)


def _change(module: Any) -> None:
    # The model runner looks it up there when the flag is on.
    module.enable_batch_invariant_mode = enable


def enable() -> None:
    """Register the operators below for the CPU, once a process."""
    if _registered:
        return
    library = torch.library.Library("aten", "IMPL")
    for name, operator in (
        ("mm", mm),
        ("mm.out", mm_out),
        ("addmm", addmm),
        ("bmm", bmm),
        ("bmm.out", bmm_out),
        ("baddbmm", baddbmm),
    ):
        library.impl(f"aten::{name}", operator, "CPU")
    for name in ("silu", "gelu", "sigmoid", "softplus"):
        by_row = row_by_row(getattr(torch.ops.aten, name).out)
        library.impl(f"aten::{name}", by_row, "CPU")
    for name in ("silu", "gelu", "sigmoid"):
        in_place = in_its_place(row_by_row(getattr(torch.ops.aten, name).out))
        library.impl(f"aten::{name}_", in_place, "CPU")
    _registered.append(library)


def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(rows, k) times (k, columns)."""
    return mm_out(a, b, out=a.new_empty(len(a), b.shape[1]))


def mm_out(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`mm` into ``out``."""
    columns = b.t()
    for row, result in zip(a, out, strict=True):
        # A copy begins where torch begins every tensor. Where a row begins decides how its ends
        # are summed.
        result.copy_(torch.mv(columns, row.clone()))
    return out


def addmm(
    bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """``beta * bias + alpha * mm(a, b)``; a bias of one row is every row's."""
    return beta * bias + alpha * mm(a, b)


def bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`mm` of each pair of (batch, rows, k) and (batch, k, columns)."""
    return bmm_out(a, b, out=a.new_empty(len(a), a.shape[1], b.shape[2]))


def bmm_out(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`bmm` into ``out``."""
    for left, right, result in zip(a, b, out, strict=True):
        mm_out(left, right, out=result)
    return out


def baddbmm(
    bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """``beta * bias + alpha * bmm(a, b)``."""
    return beta * bias + alpha * bmm(a, b)


def row_by_row(operator: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """``operator``, which takes a tensor and ``out``, on each row of the last dimension; a tensor
    with one dimension has rows of one number."""

    def by_row(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        width = x.shape[-1] if x.dim() > 1 else 1
        if x.numel():
            for row, place in zip(x.reshape(-1, width), result.view(-1, width), strict=True):
                of_row = row.clone()
                place.copy_(operator(of_row, *args, out=torch.empty_like(of_row), **options))
        return result

    return by_row


def in_its_place(operator: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``operator`` whose result takes the place of its input."""

    def changed(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return x.copy_(operator(x, *args, **options))

    return changed
