"""Write the new tokens' K and V of one layer into its pages: one launch.

    slot >= 0   page slot // T, token slot % T of the page view
    slot <  0   not kept by this group: skipped

K and V caches are page views; their strides are independent. Rotary embedding of K and the
conversion to fp8 happen on the way, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from .kernels.kv_write import write_kv
from .layout import FP8_DTYPES

# Of K, and as much of V: a vector of 16 bytes for each thread. More to a program would leave most
# processors without work in a decode of a few requests.
TILE_BYTES = 128 * 16


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of K on its first entries; the rest of the head passes through.

    positions: (tokens,) int32 or int64. cos_sin: (max positions, rope_dim), float32 or K's dtype,
    rows hold rope_dim / 2 cosines, then as many sines. `interleaved` turns neighbouring entries
    (GPT-J); otherwise entry i turns with i + rope_dim / 2 (NeoX).
    """

    positions: torch.Tensor
    cos_sin: torch.Tensor
    interleaved: bool = False


@dataclass(frozen=True)
class Fp8Scales:
    """What K and V are divided by before they become fp8; (1,) float32 each, on the device."""

    k: torch.Tensor
    v: torch.Tensor


def kv_write(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    rope: Rope | None = None,
    scales: Fp8Scales | None = None,
) -> None:
    """Store k and v at their slots; caches change in place, k and v do not.

    k: (tokens, H, Dk), v: (tokens, H, Dv); float16, bfloat16 or float32, last dim contiguous.
    k_cache: (P, T, H, Dk), v_cache: (P, T, H, Dv); any strides, last dim contiguous. Dv may be 0.
    slots: (tokens,) int64. All on one device. Without `scales` an fp8 cache needs fp8 inputs.
    """
    KvWriter(k_cache, v_cache, scales).write(k, v, slots, rope)


class KvWriter:
    """`kv_write` for the caches of one layer, checked once per kind of input.

    A forward pass that no graph replays writes every layer's K and V from Python, where the checks
    are a third of the time before the launch.
    """

    def __init__(
        self, k_cache: torch.Tensor, v_cache: torch.Tensor, scales: Fp8Scales | None = None
    ) -> None:
        self.caches = (k_cache, v_cache)
        self.scales = scales
        self._strides = (*k_cache.stride()[:3], *v_cache.stride()[:3])
        self._checked: set[object] = set()
        # Unused tensors still need an argument; the compiled kernel never touches these. Not the
        # slots: their address moves with the batch, and each alignment would be compiled for.
        self._scales = (scales.k, scales.v) if scales else (k_cache, k_cache)

    def write(
        self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, rope: Rope | None = None
    ) -> None:
        """Store k and v, (tokens, H, D) each, at their slots, (tokens,) int64."""
        kind = (k.dtype, v.dtype, k.shape[1:], v.shape[1:], k.stride(2), v.stride(2), slots.dtype)
        if rope is not None or kind not in self._checked or not len(k) == len(v) == len(slots):
            check_kv_write(k, v, *self.caches, slots, rope, self.scales)
            self._checked.add(kind)
        if len(k):
            self._launch(k, v, slots, rope)

    def _launch(
        self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, rope: Rope | None
    ) -> None:
        k_cache, v_cache = self.caches
        tokens, heads, dim_k = k.shape
        dim_v = v.shape[2]
        block_k = triton.next_power_of_2(dim_k)
        block_rows = max(1, TILE_BYTES // (block_k * k_cache.itemsize))
        rows = tokens * heads
        write_kv[(triton.cdiv(rows, block_rows),)](
            k,
            v,
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            k_cache,
            v_cache,
            *self._strides,
            slots,
            rows,
            rope.positions if rope else k_cache,
            rope.cos_sin if rope else k_cache,
            rope.cos_sin.stride(0) if rope else 0,
            *self._scales,
            NUM_HEADS=heads,
            PAGE_TOKENS=k_cache.shape[1],
            DIM_K=dim_k,
            DIM_V=dim_v,
            BLOCK_K=block_k,
            BLOCK_V=triton.next_power_of_2(max(dim_v, 1)),
            BLOCK_ROWS=block_rows,
            ROPE_DIM=rope.cos_sin.shape[1] if rope else 0,
            INTERLEAVED=rope.interleaved if rope else False,
            FP8_MAX=torch.finfo(k_cache.dtype).max if self.scales else 0.0,
        )


def check_kv_write(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    rope: Rope | None,
    scales: Fp8Scales | None,
) -> None:
    """Raise ValueError unless the arguments fit `kv_write`."""
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if new.dim() != 3 or cache.dim() != 4 or new.shape[1:] != cache.shape[2:]:
            raise ValueError(
                f"{name}: expected (tokens, H, D) and a cache (P, T, H, D), "
                f"got {tuple(new.shape)} and {tuple(cache.shape)}"
            )
        if new.shape[2] and (new.stride(2) != 1 or cache.stride(3) != 1):
            raise ValueError(f"{name}: expected a contiguous last dimension")
        if (
            new.shape[2]
            and scales is None
            and (new.dtype in FP8_DTYPES) != (cache.dtype in FP8_DTYPES)
        ):
            raise ValueError(
                f"{name}: expected scales to store {new.dtype} as {cache.dtype}, got none"
            )
        if scales is not None and cache.dtype not in FP8_DTYPES:
            raise ValueError(f"{name}_cache: expected an fp8 dtype with scales, got {cache.dtype}")
        if new.device != cache.device or slots.device != cache.device:
            raise ValueError(f"{name}: expected one device, got {new.device} and {cache.device}")
    if slots.dtype != torch.int64 or slots.shape != k.shape[:1] or not slots.is_contiguous():
        raise ValueError(
            f"slots: expected contiguous int64 ({k.shape[0]},), "
            f"got {slots.dtype} {tuple(slots.shape)}"
        )
    if v.shape[:2] != k.shape[:2] or v_cache.shape[:2] != k_cache.shape[:2]:
        raise ValueError(
            f"v: expected tokens, heads and pages of k {tuple(k.shape[:2])} in "
            f"{tuple(k_cache.shape[:2])}, got {tuple(v.shape[:2])} in {tuple(v_cache.shape[:2])}"
        )
    if rope is not None:
        check_rope(k, rope)


def check_rope(k: torch.Tensor, rope: Rope) -> None:
    """Raise ValueError unless the rotary embedding fits k, which is (tokens, H, Dk)."""
    if rope.positions.shape != k.shape[:1] or not rope.positions.is_contiguous():
        raise ValueError(
            f"positions: expected contiguous ({k.shape[0]},), got {tuple(rope.positions.shape)}"
        )
    dim = rope.cos_sin.shape[-1]
    if rope.cos_sin.dim() != 2 or dim % 2 or not 0 < dim <= k.shape[2]:
        raise ValueError(
            f"cos_sin: expected (positions, even dim up to {k.shape[2]}), "
            f"got {tuple(rope.cos_sin.shape)}"
        )
    if rope.cos_sin.stride(1) != 1:
        raise ValueError(f"cos_sin: expected contiguous rows, got {rope.cos_sin.stride()}")
