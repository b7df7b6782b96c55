"""Bytes of one layer group inside the pool.

The pool is one uint8 tensor. Small page `p` of a group starts at byte `p * small_page_bytes`:

    small page  [layer 0][layer 1] ... [layer L-1][padding]
    layer       [K block][V block]
    K block     [page_size tokens T][kv heads H][head_dim_k]
    V block     [page_size tokens T][kv heads H][head_dim_v]

    byte(p, l, K, t, h, d) = p * small_page_bytes + l * layer_bytes
                             + ((t * H + h) * head_dim_k + d) * itemsize
    byte(p, l, V, t, h, d) = p * small_page_bytes + l * layer_bytes + k_block_bytes
                             + ((t * H + h) * head_dim_v + d) * itemsize

Letters used in every shape of this package: P page, L layer, T token of a page, H kv head,
D head dim, N row or block, B request of a batch, G group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
KV_DTYPES = (torch.float16, torch.bfloat16, torch.float32, *FP8_DTYPES)


@dataclass(frozen=True)
class GroupLayout:
    """Geometry of the small pages of one group (or of one stripe of a group).

    `head_dim_v == 0` stands for a latent cache (MLA): one row per token and no V block.
    `small_page_bytes` may exceed `payload_bytes`; the padding lies at the end of the page.
    """

    num_layers: int
    page_size_tokens: int
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    dtype: torch.dtype
    small_page_bytes: int

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError when the numbers do not describe a page."""
        for name in ("num_layers", "page_size_tokens", "num_kv_heads", "head_dim_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")
        if self.head_dim_v < 0:
            raise ValueError(f"head_dim_v: expected >= 0, got {self.head_dim_v}")
        if self.dtype not in KV_DTYPES:
            raise ValueError(f"dtype: expected one of {KV_DTYPES}, got {self.dtype}")
        if self.small_page_bytes < self.payload_bytes:
            raise ValueError(
                f"small_page_bytes: expected >= payload {self.payload_bytes}, "
                f"got {self.small_page_bytes}"
            )
        if self.small_page_bytes % self.itemsize:
            raise ValueError(
                f"small_page_bytes: expected a multiple of itemsize {self.itemsize}, "
                f"got {self.small_page_bytes}"
            )

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def k_row_bytes(self) -> int:
        """Bytes of one token's K in one layer."""
        return self.num_kv_heads * self.head_dim_k * self.itemsize

    @property
    def v_row_bytes(self) -> int:
        """Bytes of one token's V in one layer; 0 for a latent cache."""
        return self.num_kv_heads * self.head_dim_v * self.itemsize

    @property
    def k_block_bytes(self) -> int:
        return self.page_size_tokens * self.k_row_bytes

    @property
    def v_block_bytes(self) -> int:
        return self.page_size_tokens * self.v_row_bytes

    @property
    def layer_bytes(self) -> int:
        return self.k_block_bytes + self.v_block_bytes

    @property
    def payload_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def page_stride_elements(self) -> int:
        """stride(0) of every page view."""
        return self.small_page_bytes // self.itemsize

    def k_offset_bytes(self, layer: int) -> int:
        """First byte of the K block of `layer`, counted from the start of a small page."""
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer: expected 0 <= layer < {self.num_layers}, got {layer}")
        return layer * self.layer_bytes

    def v_offset_bytes(self, layer: int) -> int:
        """First byte of the V block of `layer`, counted from the start of a small page."""
        return self.k_offset_bytes(layer) + self.k_block_bytes

    @property
    def is_latent(self) -> bool:
        return self.head_dim_v == 0

    @property
    def has_equal_rows(self) -> bool:
        """K and V rows have one size, so one index names both (true when there is no V)."""
        return self.is_latent or self.head_dim_k == self.head_dim_v

    @property
    def has_row_grid(self) -> bool:
        """All K and V rows of the pool lie on one grid: the row view exists."""
        return self.has_equal_rows and self.small_page_bytes % self.k_row_bytes == 0

    @property
    def has_block_grid(self) -> bool:
        """All K and V blocks of the pool lie on one grid: the block view exists."""
        return self.has_equal_rows and self.small_page_bytes % self.k_block_bytes == 0

    @property
    def rows_per_page(self) -> int:
        """Row view: index of (page, slot) is `page * rows_per_page + slot`."""
        if not self.has_row_grid:
            raise ValueError(f"no row grid: {self._grid_problem(self.k_row_bytes, 'row')}")
        return self.small_page_bytes // self.k_row_bytes

    @property
    def blocks_per_page(self) -> int:
        """Block view: index of a page is `page * blocks_per_page`."""
        if not self.has_block_grid:
            raise ValueError(f"no block grid: {self._grid_problem(self.k_block_bytes, 'block')}")
        return self.small_page_bytes // self.k_block_bytes

    def _grid_problem(self, unit_bytes: int, unit: str) -> str:
        if not self.has_equal_rows:
            return f"expected equal K and V head dims, got {self.head_dim_k} and {self.head_dim_v}"
        return (
            f"expected small_page_bytes to be a multiple of the {unit} of {unit_bytes} bytes, "
            f"got {self.small_page_bytes}"
        )

    def num_pages(self, buffer_bytes: int) -> int:
        """Small pages of this group that fit into a buffer, page 0 included."""
        return buffer_bytes // self.small_page_bytes
