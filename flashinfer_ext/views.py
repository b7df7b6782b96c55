"""Three ways to read the same bytes, per layer, without a copy.

| view  | shape                        | index of (page, slot)      | for kernels that           |
|-------|------------------------------|----------------------------|----------------------------|
| page  | (P, T, H, D), stride(0) large| page                       | honour the page stride     |
| row   | (N, H, D), contiguous        | page * rows_per_page + slot| know only page_size 1      |
| block | (N, T, H, D), contiguous     | page * blocks_per_page     | want a contiguous cache    |

The index is the same for every layer, and for K and V; only base pointers differ. Row and block
views end at the last row (block) that some page owns, so no view leaves the buffer.
"""

from __future__ import annotations

import torch

from .layout import GroupLayout

KV = tuple[torch.Tensor, torch.Tensor]


def page_views(buffer: torch.Tensor, layout: GroupLayout, layer: int) -> KV:
    """K and V of one layer, one entry per small page.

    buffer: (bytes,) uint8, any device, contiguous.
    Returns k (P, T, H, head_dim_k) and v (P, T, H, head_dim_v), `layout.dtype`, same device,
    sharing the buffer's memory; stride(0) is `layout.page_stride_elements`.
    """
    elements, pages = _elements(buffer, layout)
    stride = layout.page_stride_elements
    return (
        _strided(elements, layout.k_offset_bytes(layer), pages, stride, layout, layout.head_dim_k),
        _strided(elements, layout.v_offset_bytes(layer), pages, stride, layout, layout.head_dim_v),
    )


def row_views(buffer: torch.Tensor, layout: GroupLayout, layer: int) -> KV:
    """K and V of one layer as contiguous caches of single tokens.

    buffer: (bytes,) uint8, any device, contiguous.
    Returns k (N, H, head_dim_k) and v (N, H, head_dim_v), contiguous, sharing the buffer's memory;
    N = (P - 1) * rows_per_page + T. Raises ValueError when rows are not on one grid.
    """
    rows_per_page = layout.rows_per_page
    elements, pages = _elements(buffer, layout)
    rows = (pages - 1) * rows_per_page + layout.page_size_tokens if pages else 0
    k_offset, v_offset = layout.k_offset_bytes(layer), layout.v_offset_bytes(layer)
    return (
        _rows(elements, k_offset, rows, layout, layout.head_dim_k),
        _rows(elements, v_offset, rows, layout, layout.head_dim_v),
    )


def block_views(buffer: torch.Tensor, layout: GroupLayout, layer: int) -> KV:
    """K and V of one layer as contiguous caches of whole blocks.

    buffer: (bytes,) uint8, any device, contiguous.
    Returns k (N, T, H, head_dim_k) and v (N, T, H, head_dim_v), contiguous, sharing the buffer's
    memory; N = (P - 1) * blocks_per_page + 1. Raises ValueError when blocks are not on one grid.
    """
    blocks_per_page = layout.blocks_per_page
    elements, pages = _elements(buffer, layout)
    blocks = (pages - 1) * blocks_per_page + 1 if pages else 0
    k_stride = layout.k_block_bytes // layout.itemsize
    v_stride = layout.v_block_bytes // layout.itemsize
    k_offset, v_offset = layout.k_offset_bytes(layer), layout.v_offset_bytes(layer)
    return (
        _strided(elements, k_offset, blocks, k_stride, layout, layout.head_dim_k),
        _strided(elements, v_offset, blocks, v_stride, layout, layout.head_dim_v),
    )


def latent_views(buffer: torch.Tensor, layout: GroupLayout, layer: int, rope_dim: int) -> KV:
    """Latent and rotary parts of one layer of a latent cache (MLA).

    buffer: (bytes,) uint8, any device, contiguous.
    Returns ckv (P, T, head_dim_k - rope_dim) and kpe (P, T, rope_dim), strided, shared memory.
    """
    if not layout.is_latent or layout.num_kv_heads != 1:
        raise ValueError(
            "latent view: expected head_dim_v 0 and one kv head, "
            f"got {layout.head_dim_v} and {layout.num_kv_heads}"
        )
    if not 0 < rope_dim < layout.head_dim_k:
        raise ValueError(f"rope_dim: expected 0 < rope_dim < {layout.head_dim_k}, got {rope_dim}")
    rows = page_views(buffer, layout, layer)[0].squeeze(2)
    return rows[..., :-rope_dim], rows[..., -rope_dim:]


def check_buffer(buffer: torch.Tensor, layout: GroupLayout) -> None:
    """Raise ValueError unless `buffer` can hold pages of `layout`."""
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
        raise ValueError(
            "buffer: expected a contiguous 1-D uint8 tensor, "
            f"got {buffer.dtype} of shape {tuple(buffer.shape)}"
        )
    if buffer.storage_offset() % layout.itemsize:
        raise ValueError(
            f"buffer: expected a storage offset that is a multiple of {layout.itemsize} bytes, "
            f"got {buffer.storage_offset()}"
        )


def _elements(buffer: torch.Tensor, layout: GroupLayout) -> tuple[torch.Tensor, int]:
    """The buffer's whole pages as a flat tensor of `layout.dtype`, and their number."""
    check_buffer(buffer, layout)
    pages = layout.num_pages(buffer.numel())
    return buffer[: pages * layout.small_page_bytes].view(layout.dtype), pages


def _strided(
    elements: torch.Tensor,
    offset_bytes: int,
    count: int,
    stride: int,
    layout: GroupLayout,
    head_dim: int,
) -> torch.Tensor:
    """(count, T, H, head_dim) starting `offset_bytes` into the pages, `stride` elements apart."""
    tokens, heads = layout.page_size_tokens, layout.num_kv_heads
    size = (count, tokens, heads, head_dim)
    strides = (stride, heads * head_dim, head_dim, 1)
    return elements.as_strided(size, strides, _start(elements, offset_bytes, layout, count))


def _rows(
    elements: torch.Tensor, offset_bytes: int, count: int, layout: GroupLayout, head_dim: int
) -> torch.Tensor:
    """(count, H, head_dim) contiguous, starting `offset_bytes` into the pages."""
    heads = layout.num_kv_heads
    strides = (heads * head_dim, head_dim, 1)
    start = _start(elements, offset_bytes, layout, count)
    return elements.as_strided((count, heads, head_dim), strides, start)


def _start(elements: torch.Tensor, offset_bytes: int, layout: GroupLayout, count: int) -> int:
    """Storage offset in elements; an empty view stays at the buffer's own start."""
    inside = offset_bytes // layout.itemsize if count else 0
    return int(elements.storage_offset()) + inside
