"""What each attention or cache kernel demands of a buffer and a layout.

None of this is checked by the kernels themselves: a misaligned base faults on the device, and a
stride that is too large is truncated in silence. So it is checked once, at start-up, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .layout import FP8_DTYPES, GroupLayout
from .views import check_buffer

ALIGN_BYTES = 16
INT32_END = 2**31
HALF_DTYPES = (torch.float16, torch.bfloat16)
FA3_PAGE_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class KernelLimits:
    """Demands of one kernel; an empty tuple means that anything goes."""

    view: str
    equal_kv: bool
    head_dims: tuple[int, ...] = ()
    page_sizes: tuple[int, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (*HALF_DTYPES, *FP8_DTYPES)
    whole_heads: bool = False
    latent: bool = False


# fa2_prefill takes unequal K and V strides through a second module that FlashInfer compiles. It is
# instantiated for any head_dim; below 64 no tile is valid, and rows that are no multiple of 128
# bytes in bf16 do not fit its shared memory swizzle.
KERNELS = {
    "fa2_decode": KernelLimits("page", True, (64, 128, 256, 512)),
    "fa2_prefill": KernelLimits("page", False, (64, 128, 192, 256, 512)),
    "fa3_prefill": KernelLimits("page", True, (64, 128, 256)),
    # sgl_kernel's own FA3. Pages as large as its tiles would be fetched by TMA, which fetches what
    # lies behind a history's end with it; smaller ones row by row.
    "fa3_kvcache": KernelLimits(
        "page", False, tuple(range(8, 257, 8)), page_sizes=FA3_PAGE_SIZES, dtypes=HALF_DTYPES
    ),
    "fa3_kvcache_mla": KernelLimits(
        "page", False, page_sizes=FA3_PAGE_SIZES, dtypes=HALF_DTYPES, latent=True
    ),
    "xqa": KernelLimits(
        "page", True, tuple(range(16, 513, 16)), page_sizes=(16, 32, 64, 128), whole_heads=True
    ),
    "trtllm_gen": KernelLimits("page", True, page_sizes=(16, 32, 64)),
    "append": KernelLimits("page", True, (64, 128, 256, 512), dtypes=()),
    "mla": KernelLimits("page", False, latent=True),
    "row": KernelLimits("row", True, dtypes=()),
    "block": KernelLimits("block", True, dtypes=()),
    "triton": KernelLimits("page", False, dtypes=()),
}


def check_kernel_limits(
    buffer: torch.Tensor, layout: GroupLayout, kernels: Iterable[str] = ("fa2_prefill",)
) -> list[str]:
    """Problems that forbid the named kernels on this buffer; an empty list when there is none.

    buffer: (bytes,) uint8, any device. Names are the keys of `KERNELS`.
    """
    problems = _check_memory(buffer, layout)
    for kernel in kernels:
        if kernel not in KERNELS:
            raise ValueError(f"kernel: expected one of {sorted(KERNELS)}, got {kernel!r}")
        problems += [f"{kernel}: {text}" for text in _check_kernel(buffer, layout, KERNELS[kernel])]
    return problems


def require_kernel_limits(
    buffer: torch.Tensor, layout: GroupLayout, kernels: Iterable[str] = ("fa2_prefill",)
) -> None:
    """Raise ValueError that lists every problem `check_kernel_limits` finds."""
    problems = check_kernel_limits(buffer, layout, kernels)
    if problems:
        raise ValueError("; ".join(problems))


def _check_memory(buffer: torch.Tensor, layout: GroupLayout) -> list[str]:
    """Alignment and 32-bit limits that every kernel shares."""
    check_buffer(buffer, layout)
    aligned = {
        "buffer address": buffer.data_ptr(),
        "small_page_bytes": layout.small_page_bytes,
        "K block bytes": layout.k_block_bytes,
        "V block bytes": layout.v_block_bytes,
        "K head bytes": layout.head_dim_k * layout.itemsize,
        "V head bytes": layout.head_dim_v * layout.itemsize,
    }
    problems = [
        f"{name}: expected a multiple of {ALIGN_BYTES} bytes, got {value}"
        for name, value in aligned.items()
        if value % ALIGN_BYTES
    ]
    counts = {
        "page stride in elements": layout.page_stride_elements,
        "number of small pages": layout.num_pages(buffer.numel()),
    }
    return problems + [
        f"{name}: expected below 2**31, got {value}"
        for name, value in counts.items()
        if value >= INT32_END
    ]


def _check_kernel(buffer: torch.Tensor, layout: GroupLayout, limits: KernelLimits) -> list[str]:
    dims = {layout.head_dim_k} | ({layout.head_dim_v} if not layout.is_latent else set())
    rules = [
        _one_of("head_dim", sorted(dims), limits.head_dims),
        _one_of("page_size_tokens", [layout.page_size_tokens], limits.page_sizes),
        _one_of("dtype", [layout.dtype], limits.dtypes),
    ]
    if limits.equal_kv and not layout.has_equal_rows:
        rules.append(
            f"expected equal K and V strides, got head dims "
            f"{layout.head_dim_k} and {layout.head_dim_v}"
        )
    # XQA divides strides by head_dim in integers.
    if limits.whole_heads and layout.page_stride_elements % layout.head_dim_k:
        rules.append(
            f"expected a page stride that is a multiple of head_dim {layout.head_dim_k}, "
            f"got {layout.page_stride_elements} elements"
        )
    if limits.latent and not (layout.is_latent and layout.num_kv_heads == 1):
        rules.append(
            "expected a latent cache with one head, "
            f"got head_dim_v {layout.head_dim_v}, heads {layout.num_kv_heads}"
        )
    rules.append(_index_problem(buffer, layout, limits.view))
    return [text for text in rules if text]


def _one_of(name: str, values: Sequence[object], allowed: tuple[object, ...]) -> str:
    wrong = [value for value in values if allowed and value not in allowed]
    return f"{name}: expected one of {allowed}, got {wrong[0]}" if wrong else ""


def _index_problem(buffer: torch.Tensor, layout: GroupLayout, view: str) -> str:
    """Why table entries of this view would not fit int32, or why there is no such view."""
    multipliers: dict[str, Callable[[], int]] = {
        "page": lambda: 1,
        "row": lambda: layout.rows_per_page,
        "block": lambda: layout.blocks_per_page,
    }
    try:
        end = layout.num_pages(buffer.numel()) * multipliers[view]()
    except ValueError as error:
        return str(error)
    return f"{view} index: expected below 2**31, got {end}" if end >= INT32_END else ""
