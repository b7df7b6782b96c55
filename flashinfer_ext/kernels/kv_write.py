"""KV write: one program per block of (token, head) pairs, K and V of a layer together.

Nothing that changes from step to step is part of the compiled code.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _cache_rows(slots, stride_page, stride_token, PAGE_TOKENS: tl.constexpr):
    """Element offset of each slot in a cache; 64 bits, as a pool has more than 2**31 elements."""
    return slots // PAGE_TOKENS * stride_page + slots % PAGE_TOKENS * stride_token


@triton.jit
def _rotated(
    x,
    heads,
    dim,
    mask,
    positions,
    cos_sin,
    cos_sin_stride,
    ROPE_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """x with rotary embedding on its first ROPE_DIM entries; `heads` points at each row's head."""
    half: tl.constexpr = ROPE_DIM // 2
    if INTERLEAVED:
        is_second = dim % 2 == 1
        partner = dim ^ 1
        angle = dim // 2
    else:
        is_second = dim >= half
        partner = tl.where(is_second, dim - half, dim + half)
        angle = tl.where(is_second, dim - half, dim)
    turns = dim < ROPE_DIM
    mask = mask & turns[None, :]
    other = tl.load(heads[:, None] + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    table = cos_sin + positions.to(tl.int64)[:, None] * cos_sin_stride + angle[None, :]
    cos = tl.load(table, mask=mask, other=1.0).to(tl.float32)
    sin = tl.load(table + half, mask=mask, other=0.0).to(tl.float32)
    sign = tl.where(is_second, 1.0, -1.0)
    return tl.where(turns[None, :], x * cos + sign[None, :] * other * sin, x)


@triton.jit
def _quantised(x, scale, FP8_MAX: tl.constexpr):
    """x divided by the scale and clamped to what the fp8 format can hold."""
    x = x.to(tl.float32) / scale
    return tl.minimum(tl.maximum(x, -FP8_MAX), FP8_MAX)


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["slots", "positions"])
def write_kv(
    k,
    v,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    k_cache,
    v_cache,
    stride_kc_page,
    stride_kc_token,
    stride_kc_head,
    stride_vc_page,
    stride_vc_token,
    stride_vc_head,
    slots,
    num_rows,
    positions,
    cos_sin,
    cos_sin_stride,
    k_scale,
    v_scale,
    NUM_HEADS: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    DIM_K: tl.constexpr,
    DIM_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FP8_MAX: tl.constexpr,
):
    """Grid (blocks of rows,), a row being a (token, head) pair; shapes as in `kv_write`.

    ROPE_DIM 0 leaves K as it is, FP8_MAX 0 stores without scaling, DIM_V 0 has no V.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = row // NUM_HEADS
    head = row % NUM_HEADS
    live = row < num_rows
    slot = tl.load(slots + token, mask=live, other=-1).to(tl.int64)
    live = live & (slot >= 0)

    dim = tl.arange(0, BLOCK_K)
    mask = live[:, None] & (dim < DIM_K)[None, :]
    heads = k + token * stride_k_token + head * stride_k_head
    x = tl.load(heads[:, None] + dim[None, :], mask=mask, other=0.0)
    if DIM_V > 0:
        # Before K is stored: no load may move up over a store that could be to the same place.
        dim_v = tl.arange(0, BLOCK_V)
        mask_v = live[:, None] & (dim_v < DIM_V)[None, :]
        heads_v = v + token * stride_v_token + head * stride_v_head
        y = tl.load(heads_v[:, None] + dim_v[None, :], mask=mask_v, other=0.0)
    if ROPE_DIM > 0:
        position = tl.load(positions + token, mask=live, other=0)
        x = _rotated(
            x.to(tl.float32),
            heads,
            dim,
            mask,
            position,
            cos_sin,
            cos_sin_stride,
            ROPE_DIM,
            INTERLEAVED,
        )
    if FP8_MAX > 0:
        x = _quantised(x, tl.load(k_scale), FP8_MAX)
        if DIM_V > 0:
            y = _quantised(y, tl.load(v_scale), FP8_MAX)
    place = _cache_rows(slot, stride_kc_page, stride_kc_token, PAGE_TOKENS) + head * stride_kc_head
    tl.store(k_cache + place[:, None] + dim[None, :], x.to(k_cache.dtype.element_ty), mask=mask)
    if DIM_V > 0:
        place = _cache_rows(slot, stride_vc_page, stride_vc_token, PAGE_TOKENS)
        place += head * stride_vc_head
        tl.store(
            v_cache + place[:, None] + dim_v[None, :], y.to(v_cache.dtype.element_ty), mask=mask_v
        )
