"""What FlashInfer has to know of a group's attention, and how much workspace its plans take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .variants import Variant

CUDA_CORE_GROUP_SIZES = (1, 2, 3, 4, 6, 8, 16)
CUDA_CORE_HEAD_DIMS = (64, 128, 256, 512)
TENSOR_CORE_GROUP_SIZE = 4


@dataclass(frozen=True)
class AttentionSpec:
    """Attention of one group. The output has the queries' dtype.

    `entry_tokens` is the page size FlashInfer sees: 1 in the row view. `window_left` as in `Trim`.
    `variant` replaces FlashInfer's own module (sinks, page masks). `is_latent`: K is a row of one
    head, whose first `head_dim_vo` elements are V (MLA).
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    entry_tokens: int
    q_dtype: torch.dtype
    kv_dtype: torch.dtype
    scale: float
    window_left: int = -1
    soft_cap: float = 0.0
    causal: bool = True
    backend: str = "fa2"
    variant: Variant | None = None
    is_latent: bool = False

    def __post_init__(self) -> None:
        if self.num_kv_heads < 1 or self.num_qo_heads % self.num_kv_heads:
            raise ValueError(
                f"num_qo_heads: expected a multiple of {self.num_kv_heads}, got {self.num_qo_heads}"
            )
        if self.backend not in ("fa2", "fa3"):
            raise ValueError(f"backend: expected 'fa2' or 'fa3', got {self.backend!r}")
        if self.variant is not None:
            check_variant(self, self.variant)
        if self.is_latent:
            check_latent(self)

    @property
    def decodes_on_tensor_cores(self) -> bool:
        """Whether decode takes the tensor-core kernel: it must, or enough heads share a KV head."""
        group = self.num_qo_heads // self.num_kv_heads
        can_use_cuda_cores = (
            self.kv_dtype.itemsize > 1
            and group in CUDA_CORE_GROUP_SIZES
            and self.head_dim_qk in CUDA_CORE_HEAD_DIMS
            and self.head_dim_qk == self.head_dim_vo
        )
        return not can_use_cuda_cores or group >= TENSOR_CORE_GROUP_SIZE


def check_variant(spec: AttentionSpec, variant: Variant) -> None:
    """Raise ValueError unless the compiled variant is the one that the spec needs."""
    built = (variant.q_dtype, variant.kv_dtype, variant.head_dim_qk, variant.head_dim_vo)
    wanted = (spec.q_dtype, spec.kv_dtype, spec.head_dim_qk, spec.head_dim_vo)
    if built != wanted:
        raise ValueError(f"variant: expected dtypes and head dims {wanted}, got {built}")
    if variant.window != (spec.window_left >= 0) or variant.backend != spec.backend:
        raise ValueError(
            f"variant: expected window {spec.window_left >= 0} on {spec.backend}, "
            f"got {variant.window} on {variant.backend}"
        )
    if spec.soft_cap > 0:
        raise ValueError(f"variant: expected no soft cap, got {spec.soft_cap}")


def check_latent(spec: AttentionSpec) -> None:
    """Raise ValueError unless the spec is one of latent rows as FlashInfer's kernels read them."""
    if spec.num_kv_heads != 1 or spec.head_dim_qk <= spec.head_dim_vo:
        raise ValueError(
            "latent rows: expected one KV head and V as a part of K, got "
            f"{spec.num_kv_heads}, {spec.head_dim_qk} and {spec.head_dim_vo}"
        )
    if spec.window_left >= 0 or spec.soft_cap > 0 or spec.variant is not None:
        raise ValueError("latent rows: their kernel has no window, no soft cap and no variants")


def int_workspace_bytes(max_batch: int, max_rows: int, num_qo_heads: int) -> int:
    """Room for the schedule of a batch; FlashInfer raises should a plan ever need more.

    FA2 keeps 3 numbers per tile of at least 16 rows times heads, and 2 per row; FA3 keeps 8 per
    tile of at least 64 rows and head. A request ends in a tile of its own; twice that leaves room
    for padding, and 256 KiB for the grid of a captured decode.
    """
    tiles_fa2 = max_rows * num_qo_heads // 16 + max_batch
    tiles_fa3 = (max_rows // 64 + max_batch) * num_qo_heads
    numbers = max(3 * tiles_fa2 + 2 * max_rows, 8 * tiles_fa3) + 4 * max_batch
    return 2 * 4 * numbers + (1 << 18)
