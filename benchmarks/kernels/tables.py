"""What does the metadata of a step cost, on the device and on the host?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from flashinfer_ext.plan import AttentionPlan
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.table_spec import BatchInputs, TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import Trim, host_counts, max_entries

from .result import Row
from .timing import gpu_times, host_time

BF16 = torch.bfloat16
REQUESTS = 256
MAX_KV_TOKENS = 8192
TARGET_BUILD_US = 15.0
TARGET_PLAN_US = 50.0
WINDOWS = (-1, 1023, 4095, 127)


def builds() -> Iterator[Row]:
    for stripes, target in ((1, TARGET_BUILD_US), (8, None)):
        builder, arguments = make_build(stripes)
        time = gpu_times({"build": partial(builder.build, *arguments)})["build"]
        check_build(builder, arguments[0])
        name = f"tables, {REQUESTS} requests x {len(WINDOWS)} groups x {stripes} stripes"
        yield Row(name, time.median_us, "us", target=target, detail=f"p90 {time.p90_us:.1f} us")
        launch = host_time(partial(builder.build, *arguments))
        yield Row(f"{name}, host side of the launch", launch.median_us, "us")


def make_build(
    stripes: int,
) -> tuple[TableBuilder, tuple[BatchInputs, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A decode step: lengths up to MAX_KV_TOKENS, one new token each."""
    torch.manual_seed(1)
    trims = [Trim(16, window) for window in WINDOWS]
    specs = tuple(
        TableSpec(t, max_entries(t, MAX_KV_TOKENS, 1), write_mul=16, num_stripes=stripes)
        for t in trims
    )
    builder = TableBuilder(specs, 16, REQUESTS, REQUESTS, "cuda")
    pages_each = MAX_KV_TOKENS // 16
    ints = {"dtype": torch.int32, "device": "cuda"}
    rows_of = torch.randperm(REQUESTS * pages_each, device="cuda").int()
    lens = torch.randint(1, MAX_KV_TOKENS + 1, (1, REQUESTS), **ints)
    batch = BatchInputs(
        torch.arange(REQUESTS, **ints)[None], lens, torch.ones_like(lens), torch.zeros_like(lens)
    )
    tables = torch.randint(1, 1 << 20, (builder.num_tables, rows_of.numel()), **ints)
    locs = torch.randint(0, rows_of.numel() * 16, (1, REQUESTS), device="cuda")
    return builder, (batch, rows_of.view(REQUESTS, pages_each), tables, locs)


def check_build(builder: TableBuilder, batch: BatchInputs) -> None:
    for group, spec in enumerate(builder.specs):
        counts = host_counts(spec.trim, batch.kv_lens[0].cpu(), batch.q_lens[0].cpu())
        if not torch.equal(builder.tables(group, REQUESTS).indptr.cpu(), counts.indptr_cpu):
            raise AssertionError(f"tables: group {group} differs from the host's counts")


def plans(workspace: torch.Tensor) -> Iterator[Row]:
    """Host time of counting and planning one group, after the first plan."""
    for batch in (64, 256):
        builder, arguments = make_build(1)
        for heads, kernel in ((8, "CUDA cores"), (16, "tensor cores")):
            spec = AttentionSpec(heads, 4, 128, 128, 16, BF16, BF16, 0.1, WINDOWS[1])
            planner = GroupPlanner(spec, workspace, REQUESTS, REQUESTS)
            plan = planner.decode(0, builder.tables(1, batch))
            lens_cpu = arguments[0].kv_lens[0, :batch].cpu()
            ones = torch.ones_like(lens_cpu)
            time = host_time(partial(plan_step, plan, builder.specs[1].trim, lens_cpu, ones))
            name = f"plan of a group, {kernel}, {batch} requests"
            yield Row(name, time.median_us, "us", target=TARGET_PLAN_US)


def plan_step(
    plan: AttentionPlan, trim: Trim, kv_lens_cpu: torch.Tensor, q_lens_cpu: torch.Tensor
) -> None:
    """All that a group costs the host in a step, kernels aside."""
    plan.plan(host_counts(trim, kv_lens_cpu, q_lens_cpu))
