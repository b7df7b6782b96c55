"""Page tables of all groups in one launch.

SGLang names tokens by virtual ids; a group's page table maps a virtual page to one of its small
pages. Attention kernels want, per group, small pages in request order:

    row of request r    v0 v1 v2 v3          virtual pages, oldest first
    table of group g    v -> p               small page, -1 for none
    trimmed at entry 1     p1 p2 p3          entries of request r, as CSR and as a dense row

An entry is `page * page_mul + add`, or, where entries are single tokens (row view),
`page * page_mul + offset in page + add`. A missing page becomes the null page, which holds zeros.
A write slot is `page * write_mul + offset in page`, or -1 when the group keeps no such token.

The grid depends on batch size and token count alone and nothing is read back, so the launch can be
captured in a CUDA graph; the numbers may change between replays, the tensors may not.
"""

from __future__ import annotations

import torch
import triton

from .kernels import tables as kernel
from .limits import INT32_END
from .table_spec import BatchInputs, GroupTables, TableSpec

NULL_PAGE = 0
BLOCK_ENTRIES = 256
BLOCK_SLOTS = 256
BLOCK_REQUESTS = 256
# Sizes of batches whose views are kept.
MOST_VIEWS = 512
# Programs of one table, about: few requests share them, each by blocks of its entries.
PROGRAMS = 4096


class TableBuilder:
    """Owns the output buffers of all groups and fills them with one launch per step.

    `index_dtype` is the dtype of CSR entries and dense tables: int32 for FlashInfer, int64 for
    kernels that multiply an entry by a stride in the entry's own width.

    In a dense row entries past a request's count are the null page up to the next multiple of
    BLOCK_ENTRIES; farther ones keep what an earlier step wrote, which names a page as well.
    """

    def __init__(
        self,
        specs: tuple[TableSpec, ...],
        page_size_tokens: int,
        max_batch: int,
        max_tokens: int,
        device: torch.device | str,
        index_dtype: torch.dtype = torch.int32,
    ) -> None:
        if not specs:
            raise ValueError("specs: expected at least one group, got none")
        for spec in specs:
            if spec.trim.entry_tokens not in (1, page_size_tokens):
                raise ValueError(
                    f"entry_tokens: expected 1 or the page size {page_size_tokens}, "
                    f"got {spec.trim.entry_tokens}"
                )
        self.specs = specs
        self.page_size_tokens = page_size_tokens
        self.max_batch = max_batch
        self.max_tokens = max_tokens
        self.num_tables = sum(spec.num_stripes for spec in specs)
        rows, csr_size, dense_size = _parameter_rows(specs, max_batch)
        self.page_tables_wanted = 1 + max(row[kernel.PAGE_TABLE.value] for row in rows)
        self._starts = [
            (row[kernel.CSR_START.value], row[kernel.DENSE_START.value]) for row in rows
        ]
        most_blocks = triton.cdiv(max(spec.max_entries for spec in specs), BLOCK_ENTRIES)
        self._views: dict[tuple[int, int, int], GroupTables] = {}
        self._num_parts = max(1, min(most_blocks, PROGRAMS // max_batch))
        groups = len(specs)
        ints = {"dtype": torch.int32, "device": device}
        self.params = torch.tensor(rows, **ints)
        self.indptr = torch.zeros((groups, max_batch + 1), **ints)
        self.kv_lens = torch.zeros((groups, max_batch), **ints)
        self.last_page_len = torch.ones((groups, max_batch), **ints)
        entries = {"dtype": index_dtype, "device": device}
        self.indices = torch.full((csr_size,), NULL_PAGE, **entries)
        self.dense = torch.full((dense_size,), NULL_PAGE, **entries)
        self.slots = torch.full((self.num_tables, max_tokens), -1, dtype=torch.int64, device=device)

    def build(
        self,
        batch: BatchInputs,
        virtual_rows: torch.Tensor,
        page_tables: torch.Tensor,
        out_locs: torch.Tensor | None = None,
        rows_hold_tokens: bool = False,
    ) -> None:
        """Fill the buffers for this step.

        batch: see BatchInputs.
        virtual_rows: (rows, columns) int32; virtual page of each page of a request, -1 for none,
            or, with `rows_hold_tokens`, virtual token of each token (SGLang's `req_to_token`).
        page_tables: (page_tables_wanted or more, virtual pages) int32; small page, -1 for none.
            What it has no column for is missing as well.
        out_locs: (R, num tokens) int64 or int32; virtual tokens to be written, -1 for none.
        All on the builder's device.
        """
        self._check(batch, virtual_rows, page_tables, out_locs)
        requests = batch.kv_lens.shape[1]
        tokens = out_locs.shape[1] if out_locs is not None else 0
        grid = (requests * self._num_parts + triton.cdiv(tokens, BLOCK_SLOTS), self.num_tables)
        if grid[0] == 0:
            self.indptr[:, 0] = 0
            return
        # Without new tokens no program reads locations; any tensor of their dtype stands in.
        locs = out_locs if out_locs is not None else self.slots
        kernel.build_tables[grid](
            batch.req_rows,
            batch.kv_lens,
            batch.q_lens,
            batch.first_pages,
            batch.kv_lens.stride(0),
            requests,
            self._num_parts,
            locs,
            locs.stride(0),
            tokens,
            virtual_rows,
            virtual_rows.stride(0),
            page_tables,
            page_tables.stride(0),
            page_tables.shape[1],
            self.params,
            self.indptr,
            self.kv_lens,
            self.last_page_len,
            self.max_batch,
            self.indices,
            self.dense,
            self.slots,
            self.max_tokens,
            PAGE_TOKENS=self.page_size_tokens,
            ROWS_HOLD_TOKENS=rows_hold_tokens,
            NULL=NULL_PAGE,
            BLOCK_B=BLOCK_REQUESTS,
            BLOCK_E=BLOCK_ENTRIES,
            BLOCK_L=BLOCK_SLOTS,
        )

    def tables(self, group: int, num_requests: int, num_tokens: int = 0) -> GroupTables:
        """The buffers of one group as views sized for a batch; no copy, no launch.

        The same object for the same sizes: decodes ask for it in every step, and views take longer
        to make than to find.
        """
        sizes = (group, num_requests, num_tokens)
        made = self._views.get(sizes)
        if made is None:
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            made = self._views[sizes] = self._view(*sizes)
        return made

    def _view(self, group: int, num_requests: int, num_tokens: int) -> GroupTables:
        spec = self.specs[group]
        first = sum(other.num_stripes for other in self.specs[:group])
        stripes = range(first, first + spec.num_stripes)
        return GroupTables(
            self.indptr[group, : num_requests + 1],
            self.kv_lens[group, :num_requests],
            self.last_page_len[group, :num_requests],
            tuple(self._csr(table, spec) for table in stripes if spec.csr),
            tuple(self._dense(table, spec, num_requests) for table in stripes if spec.dense),
            tuple(self.slots[table, :num_tokens] for table in stripes),
        )

    def _csr(self, table: int, spec: TableSpec) -> torch.Tensor:
        start = self._starts[table][0]
        return self.indices[start : start + spec.csr_entries(self.max_batch)]

    def _dense(self, table: int, spec: TableSpec, num_requests: int) -> torch.Tensor:
        start = self._starts[table][1]
        flat = self.dense[start : start + num_requests * spec.max_entries]
        return flat.view(num_requests, spec.max_entries)

    def _check(
        self,
        batch: BatchInputs,
        virtual_rows: torch.Tensor,
        page_tables: torch.Tensor,
        out_locs: torch.Tensor | None,
    ) -> None:
        check_table_inputs(self, batch, virtual_rows, page_tables)
        if out_locs is None:
            return
        rows = 1 + max(spec.loc_row for spec in self.specs)
        if out_locs.dim() != 2 or out_locs.shape[0] < rows or out_locs.shape[1] > self.max_tokens:
            raise ValueError(
                f"out_locs: expected ({rows} or more, at most {self.max_tokens}), "
                f"got {tuple(out_locs.shape)}"
            )
        if out_locs.dtype not in (torch.int32, torch.int64) or out_locs.stride(1) != 1:
            raise ValueError(
                f"out_locs: expected int32 or int64 with contiguous rows, got {out_locs.dtype} "
                f"with strides {out_locs.stride()}"
            )


def check_table_inputs(
    builder: TableBuilder,
    batch: BatchInputs,
    virtual_rows: torch.Tensor,
    page_tables: torch.Tensor,
) -> None:
    """Raise ValueError unless shapes, dtypes and devices are what the kernel assumes."""
    rows = 1 + max(spec.batch_row for spec in builder.specs)
    shape = batch.kv_lens.shape
    if len(shape) != 2 or shape[0] < rows or shape[1] > builder.max_batch:
        raise ValueError(
            f"kv_lens: expected ({rows} or more, at most {builder.max_batch}), got {tuple(shape)}"
        )
    for name in ("req_rows", "kv_lens", "q_lens", "first_pages"):
        tensor = getattr(batch, name)
        if tensor.shape != shape or tensor.stride() != batch.kv_lens.stride():
            raise ValueError(f"{name}: expected shape and strides of kv_lens, got {tensor.shape}")
        _check_int32(name, tensor, builder.params.device)
    for name, tensor in (("virtual_rows", virtual_rows), ("page_tables", page_tables)):
        if tensor.dim() != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got {tensor.dim()}")
        _check_int32(name, tensor, builder.params.device)
    if page_tables.shape[0] < builder.page_tables_wanted:
        raise ValueError(
            f"page_tables: expected {builder.page_tables_wanted} or more rows, "
            f"got {page_tables.shape[0]}"
        )


def _check_int32(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.dtype != torch.int32 or tensor.device != device or tensor.stride(-1) != 1:
        raise ValueError(
            f"{name}: expected int32 with contiguous rows on {device}, "
            f"got {tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
        )


def _parameter_rows(
    specs: tuple[TableSpec, ...], max_batch: int
) -> tuple[list[list[int]], int, int]:
    """The kernel's parameters, one row per table, and the lengths of the CSR and dense buffers."""
    rows = []
    csr_size = dense_size = page_table = 0
    for group, spec in enumerate(specs):
        page_table = page_table if spec.first_table is None else spec.first_table
        for stripe in range(spec.num_stripes):
            row = [0] * kernel.NUM_PARAMS.value
            row[kernel.GROUP.value] = group
            row[kernel.IS_FIRST_STRIPE.value] = int(stripe == 0)
            row[kernel.ENTRY_TOKENS.value] = spec.trim.entry_tokens
            row[kernel.WINDOW_LEFT.value] = spec.trim.window_left
            row[kernel.CHUNK_TOKENS.value] = spec.trim.chunk_tokens
            row[kernel.PAGE_MUL.value] = spec.page_mul
            row[kernel.INDEX_ADD.value] = spec.index_add
            row[kernel.WRITE_MUL.value] = spec.write_mul
            row[kernel.BATCH_ROW.value] = spec.batch_row
            row[kernel.LOC_ROW.value] = spec.loc_row
            row[kernel.CSR_START.value] = csr_size if spec.csr else -1
            row[kernel.DENSE_START.value] = dense_size if spec.dense else -1
            row[kernel.MAX_ENTRIES.value] = spec.max_entries
            row[kernel.PAGE_TABLE.value] = page_table
            rows.append(row)
            csr_size += spec.csr_entries(max_batch)
            dense_size += spec.dense_entries(max_batch)
            page_table += 1
    if max(csr_size, dense_size) >= INT32_END:
        raise ValueError(
            f"table buffers: expected below 2**31 entries, got {max(csr_size, dense_size)}"
        )
    return rows, csr_size, dense_size
