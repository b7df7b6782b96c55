"""Does a whole decode step stay as fast when its layers live in one pool?

The attention side of Gemma-3-27B: 62 layers, every sixth with full attention, the others with a
window of 1,024, 32 query and 16 KV heads of 128. A step writes each layer's new token and attends;
Jenga also builds its page tables in the graph. Stock: dense caches per layer, FlashInfer's append.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from flashinfer_ext import GroupLayout, page_views
from flashinfer_ext.kv_write import kv_write
from flashinfer_ext.plan import AttentionPlan
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.table_spec import BatchInputs, GroupTables, TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import Trim, host_counts, max_entries
from flashinfer_ext.views import KV

from .result import Failed, Row, tried
from .timing import gpu_times

BF16 = torch.bfloat16
NUM_LAYERS, FULL_EVERY = 62, 6
QO_HEADS, KV_HEADS, DIM, PAGE = 32, 16, 128, 16
WINDOW_LEFT = 1023
TARGET_RATIO = 1.02


@dataclass(frozen=True)
class Group:
    layers: tuple[int, ...]
    trim: Trim

    @property
    def layout(self) -> GroupLayout:
        payload = len(self.layers) * 2 * PAGE * KV_HEADS * DIM * 2
        return GroupLayout(len(self.layers), PAGE, KV_HEADS, DIM, DIM, BF16, payload)


FULL = Group(tuple(range(FULL_EVERY - 1, NUM_LAYERS, FULL_EVERY)), Trim(PAGE))
WINDOWED = Group(
    tuple(i for i in range(NUM_LAYERS) if i not in FULL.layers), Trim(PAGE, WINDOW_LEFT)
)
GROUPS = (FULL, WINDOWED)


class Step:
    """A decode step of `batch` requests with `kv_len` tokens each, in both memories."""

    def __init__(self, batch: int, kv_len: int, workspace: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.batch, self.kv_len = batch, kv_len
        self.builder = TableBuilder(self._table_specs(), PAGE, batch, batch, "cuda")
        self._name_pages()
        self.build()
        self.q = torch.randn(batch, QO_HEADS, DIM, device="cuda", dtype=BF16)
        self.k, self.v = torch.randn(2, batch, KV_HEADS, DIM, device="cuda", dtype=BF16).unbind()
        self.tables = [self.builder.tables(g, batch, batch) for g in range(len(GROUPS))]
        self.plans = [self._plan(g, workspace) for g in range(len(GROUPS))]
        self.views, self.dense = self._memories()
        self.append_arrays = [self._append(tables) for tables in self.tables]

    def _table_specs(self) -> tuple[TableSpec, ...]:
        return tuple(
            TableSpec(g.trim, max_entries(g.trim, self.kv_len, 1), write_mul=PAGE) for g in GROUPS
        )

    def _name_pages(self) -> None:
        """Small pages at random; the windowed group keeps those of its window alone."""
        each = -(-self.kv_len // PAGE)
        count = self.batch * each
        ints = {"dtype": torch.int32, "device": "cuda"}
        self.rows = torch.arange(count, **ints).view(self.batch, each)
        tables = torch.full((len(GROUPS), count), -1, **ints)
        self.num_pages = []
        for group, spec in enumerate(self.builder.specs):
            kept = self.rows[:, each - min(each, spec.max_entries) :].flatten().long()
            tables[group, kept] = torch.randperm(kept.numel(), device="cuda").int() + 1
            self.num_pages.append(kept.numel() + 1)
        self.page_tables = tables
        lens = torch.full((1, self.batch), self.kv_len, **ints)
        zeros = torch.zeros_like(lens)
        requests = torch.arange(self.batch, **ints)[None]
        self.inputs = BatchInputs(requests, lens, torch.ones_like(lens), zeros)
        last = self.rows[:, -1].long() * PAGE + (self.kv_len - 1) % PAGE
        self.locs = last[None].contiguous()

    def build(self) -> None:
        self.builder.build(self.inputs, self.rows, self.page_tables, self.locs)

    def _plan(self, group: int, workspace: torch.Tensor) -> AttentionPlan:
        trim = GROUPS[group].trim
        spec = AttentionSpec(
            QO_HEADS, KV_HEADS, DIM, DIM, PAGE, BF16, BF16, DIM**-0.5, trim.window_left
        )
        planner = GroupPlanner(spec, workspace, self.batch, self.batch)
        plan = planner.decode(self.batch, self.tables[group], cuda_graph=True)
        lens = torch.full((self.batch,), self.kv_len, dtype=torch.int32)
        plan.plan(host_counts(trim, lens, torch.ones_like(lens)))
        return plan

    def _memories(self) -> tuple[dict[int, KV], dict[int, KV]]:
        """Per layer: views of the group's pool, and dense caches that hold the same numbers."""
        views: dict[int, KV] = {}
        dense: dict[int, KV] = {}
        for group, pages in zip(GROUPS, self.num_pages, strict=True):
            buffer = torch.empty(
                pages * group.layout.small_page_bytes, dtype=torch.uint8, device="cuda"
            )
            buffer.view(BF16).normal_()
            for index, layer in enumerate(group.layers):
                k, v = page_views(buffer, group.layout, index)
                views[layer], dense[layer] = (k, v), (k.contiguous(), v.contiguous())
        return views, dense

    def _append(self, tables: GroupTables) -> tuple[torch.Tensor, ...]:
        """What FlashInfer's append wants besides the tables."""
        requests = torch.arange(self.batch, dtype=torch.int32, device="cuda")
        return requests, (tables.kv_lens - 1).clone()

    def jenga(self) -> list[torch.Tensor]:
        self.build()
        outs = []
        for layer in range(NUM_LAYERS):
            group = int(layer not in FULL.layers)
            kv_write(self.k, self.v, *self.views[layer], self.tables[group].slots[0])
            outs.append(self.plans[group].run(self.q, *self.views[layer]))
        return outs

    def stock(self) -> list[torch.Tensor]:
        import flashinfer

        outs = []
        for layer in range(NUM_LAYERS):
            group = int(layer not in FULL.layers)
            tables = self.tables[group]
            flashinfer.append_paged_kv_cache(
                self.k,
                self.v,
                *self.append_arrays[group],
                self.dense[layer],
                tables.indices[0],
                tables.indptr,
                tables.last_page_len,
            )
            outs.append(self.plans[group].run(self.q, *self.dense[layer]))
        return outs


def rows(workspace: torch.Tensor) -> Iterator[Row | Failed]:
    for batch, kv_len in ((16, 8192), (32, 1024)):
        name = f"decode step, Gemma-3-27B shape, {batch} x {kv_len}"
        yield tried(name, partial(compare, name, batch, kv_len, workspace))
        torch.cuda.empty_cache()


def compare(name: str, batch: int, kv_len: int, workspace: torch.Tensor) -> Row:
    step = Step(batch, kv_len, workspace)
    if not all(map(torch.equal, step.jenga(), step.stock())):
        raise AssertionError("Jenga and stock differ")
    times = gpu_times({"jenga": step.jenga, "stock": step.stock}, rounds=20, repeats=1)
    jenga, stock = times["jenga"].median_us, times["stock"].median_us
    detail = f"jenga {jenga:.0f} us, stock {stock:.0f} us"
    return Row(name, jenga / stock, "x stock", stock, TARGET_RATIO, detail=detail)
