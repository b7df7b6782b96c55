"""What a group wants in its page tables, and what goes into and comes out of a build."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layout import GroupLayout
from .trim import Trim


@dataclass(frozen=True)
class TableSpec:
    """One group's tables: trim, index arithmetic and capacity.

    `max_entries` bounds one request's entries. `csr_room` bounds those of a batch; 0 is for a batch
    whose every request is the longest.
    `num_stripes` page tables in a row belong to the group; they share its CSR geometry.
    `batch_row` picks the row of the batch tensors, `loc_row` the row of `out_locs`: a group whose
    lengths or new tokens differ from the others' (cross attention, split chunks) has its own.
    `first_table` is where the group's page tables are among those that a build is given; None says
    behind those of the group before.
    """

    trim: Trim
    max_entries: int
    page_mul: int = 1
    index_add: int = 0
    write_mul: int = 1
    num_stripes: int = 1
    batch_row: int = 0
    loc_row: int = 0
    csr: bool = True
    dense: bool = True
    csr_room: int = 0
    first_table: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_entries", "page_mul", "write_mul", "num_stripes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected >= 1, got {getattr(self, name)}")

    def csr_entries(self, max_batch: int) -> int:
        """Entries of one stripe's CSR buffer."""
        return (self.csr_room or self.max_entries * max_batch) if self.csr else 0

    def dense_entries(self, max_batch: int) -> int:
        """Entries of one stripe's dense table."""
        return self.max_entries * max_batch if self.dense else 0


def index_multiplier(layout: GroupLayout, view: str) -> int:
    """`page_mul` of the view named "page", "row" or "block"."""
    if view == "page":
        return 1
    if view not in ("row", "block"):
        raise ValueError(f"view: expected 'page', 'row' or 'block', got {view!r}")
    return layout.rows_per_page if view == "row" else layout.blocks_per_page


@dataclass(frozen=True)
class BatchInputs:
    """Requests of a step; R rows as named by `TableSpec.batch_row`. All int32, one device.

    req_rows: (R, B) row of `virtual_rows` that belongs to the request.
    kv_lens: (R, B) tokens of the request, the new ones included.
    q_lens: (R, B) new tokens, which are the last ones; 0 counts as one.
    first_pages: (R, B) column of the row at which the group's tokens start.
    """

    req_rows: torch.Tensor
    kv_lens: torch.Tensor
    q_lens: torch.Tensor
    first_pages: torch.Tensor


@dataclass(frozen=True)
class GroupTables:
    """Output of one group. Tensors are views of the builder's buffers.

    indptr: (B + 1,) int32. kv_lens, last_page_len: (B,) int32, after the trim.
    indices: per stripe (room for any batch,), the first indptr[B] are valid.
    block_tables: per stripe (B, max_entries). Both have the builder's index dtype.
    slots: per stripe (num tokens,) int64.
    """

    indptr: torch.Tensor
    kv_lens: torch.Tensor
    last_page_len: torch.Tensor
    indices: tuple[torch.Tensor, ...]
    block_tables: tuple[torch.Tensor, ...]
    slots: tuple[torch.Tensor, ...]
