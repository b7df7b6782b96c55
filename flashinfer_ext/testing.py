"""A batch in a pool, made for tests and benchmarks: pages out of order, strangers full of NaN.

case = PagedCase(CaseSpec(layout, kv_lens, q_lens, num_qo_heads=16, window_left=63), "cuda")
case.build()                       # page tables and write slots, one launch
case.write()                       # every token's K and V, one launch
out = ...                          # some kernel on case.views() and case.tables
compare with case.expected()       # float64, from the untrimmed history
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import reference
from .kv_write import kv_write
from .layout import GroupLayout
from .reference import Mask
from .table_spec import BatchInputs, GroupTables, TableSpec, index_multiplier
from .tables import TableBuilder
from .trim import HostCounts, Trim, host_counts, max_entries
from .views import KV, block_views, page_views, row_views

NAN_BYTE = 255
VIEWS = {"page": page_views, "row": row_views, "block": block_views}


@dataclass(frozen=True)
class CaseSpec:
    """A batch of one group. `num_pages` is the pool's size; by default a few more than needed. Of a
    latent layout (MLA) V is the first `latent_dim` elements of K."""

    layout: GroupLayout
    kv_lens: tuple[int, ...]
    q_lens: tuple[int, ...]
    num_qo_heads: int
    window_left: int = -1
    chunk_tokens: int = 0
    soft_cap: float = 0.0
    with_sinks: bool = False
    view: str = "page"
    layer: int = 0
    num_pages: int | None = None
    seed: int = 0
    latent_dim: int = 0

    @property
    def scale(self) -> float:
        return float(self.layout.head_dim_k) ** -0.5

    @property
    def pages_per_request(self) -> list[int]:
        return [-(-n // self.layout.page_size_tokens) for n in self.kv_lens]

    @property
    def trim(self) -> Trim:
        unit = 1 if self.view == "row" else self.layout.page_size_tokens
        return Trim(unit, self.window_left, self.chunk_tokens)

    def table_spec(self) -> TableSpec:
        return TableSpec(
            self.trim,
            max_entries(self.trim, max(self.kv_lens), max(self.q_lens)),
            page_mul=index_multiplier(self.layout, self.view),
            write_mul=self.layout.page_size_tokens,
        )

    def counts(self) -> HostCounts:
        return host_counts(
            self.trim,
            torch.tensor(self.kv_lens, dtype=torch.int32),
            torch.tensor(self.q_lens, dtype=torch.int32),
        )


class PagedCase:
    """The batch's tensors. Queries are the last q_len tokens of each request.

    buffer: the pool, (bytes,) uint8; page 0 zero, all else NaN until written.
    keys, values: (sum of kv_lens, H, D), all tokens of the batch, request after request.
    q: (sum of q_lens, Hq, Dk). sinks: (Hq,) float32 or None. Rows of q, keys and values lie apart.
    """

    def __init__(
        self,
        spec: CaseSpec,
        device: torch.device | str,
        new_dtype: torch.dtype | None = None,
        buffer: torch.Tensor | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        layout, needed = spec.layout, sum(spec.pages_per_request)
        self.num_pages = spec.num_pages or needed + 4
        if self.num_pages <= needed:
            raise ValueError(f"num_pages: expected > {needed}, got {self.num_pages}")
        self.buffer = self._pool() if buffer is None else buffer
        generator = torch.Generator().manual_seed(spec.seed)
        self._name_pages(generator)
        dtype = new_dtype or layout.dtype
        tokens, heads = sum(spec.kv_lens), layout.num_kv_heads

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype).to(self.device)

        shapes = [(spec.num_qo_heads, layout.head_dim_k)]
        shapes += [(heads, layout.head_dim_k), (heads, layout.head_dim_v)]
        sizes = [count * dim for count, dim in shapes]

        def projected(rows: int) -> list[torch.Tensor]:
            """q, k and v as models make them: parts of the rows of one tensor."""
            parts = normal(rows, sum(sizes)).split(sizes, dim=1)
            return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

        self.q = projected(sum(spec.q_lens))[0]
        _, self.keys, self.values = projected(tokens)
        self.sinks = normal(spec.num_qo_heads).float() if spec.with_sinks else None
        self.builder = TableBuilder(
            (spec.table_spec(),), layout.page_size_tokens, len(spec.kv_lens), tokens, self.device
        )

    def _pool(self) -> torch.Tensor:
        size = self.num_pages * self.spec.layout.small_page_bytes
        buffer = torch.full((size,), NAN_BYTE, dtype=torch.uint8, device=self.device)
        buffer[: self.spec.layout.small_page_bytes] = 0
        return buffer

    def _name_pages(self, generator: torch.Generator) -> None:
        """Virtual pages in order, small pages at random over the whole pool, never page 0."""
        pages, tokens = self.spec.pages_per_request, self.spec.layout.page_size_tokens
        order = torch.randperm(self.num_pages - 1, generator=generator)[: sum(pages)] + 1
        self.page_table = order.int()[None].to(self.device)
        rows = torch.full((len(pages), max(pages)), -1, dtype=torch.int32)
        locs, first = [], 0
        for row, count, kv_len in zip(rows, pages, self.spec.kv_lens, strict=True):
            row[:count] = torch.arange(first, first + count)
            locs.append(torch.arange(first * tokens, first * tokens + kv_len))
            first += count
        self.virtual_rows = rows.to(self.device)
        self.locs = torch.cat(locs)[None].to(self.device)
        self.block_tables = torch.where(rows < 0, 0, order[rows.long()]).to(self.device)

    def batch(self) -> BatchInputs:
        """The batch as the table builder takes it."""

        def row(values: tuple[int, ...] | range) -> torch.Tensor:
            return torch.tensor([list(values)], dtype=torch.int32, device=self.device)

        spec = self.spec
        zeros = (0,) * len(spec.kv_lens)
        return BatchInputs(
            row(range(len(spec.kv_lens))), row(spec.kv_lens), row(spec.q_lens), row(zeros)
        )

    def build(self) -> None:
        """Page tables for the queries, write slots for every token."""
        self.builder.build(self.batch(), self.virtual_rows, self.page_table, self.locs)

    @property
    def tables(self) -> GroupTables:
        return self.builder.tables(0, len(self.spec.kv_lens), sum(self.spec.kv_lens))

    def views(self) -> KV:
        """K and V of the case's layer in the case's view."""
        return self._read(VIEWS[self.spec.view](self.buffer, self.spec.layout, self.spec.layer))

    def _read(self, caches: KV) -> KV:
        k, v = caches
        return (k, k[..., : self.spec.latent_dim]) if self.spec.latent_dim else (k, v)

    def page_views(self) -> KV:
        return page_views(self.buffer, self.spec.layout, self.spec.layer)

    def write(self) -> None:
        """Every token's K and V to its page, converted where dtypes differ."""
        kv_write(self.keys, self.values, *self.page_views(), self.tables.slots[0])

    def expected(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """(sum of q_lens, Hq, Dv) from the pages as they are, by the reference."""
        return reference.paged_attention(
            self.q,
            *self._read(self.page_views()),
            self.block_tables,
            list(self.spec.kv_lens),
            list(self.spec.q_lens),
            self.spec.scale,
            Mask(True, self.spec.window_left, self.spec.chunk_tokens),
            self.spec.soft_cap,
            self.sinks,
            dtype=dtype,
        )[0]
