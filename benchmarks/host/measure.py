"""Times of the `flashinfer_ext` that is imported, whichever that is: one JSON object on stdout.

FlashInfer's own planners are left out, whose compiled code is not ours: what is timed is the Python
around them, on host tensors.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import torch

from flashinfer_ext.host_modules import flashinfer_on_host
from flashinfer_ext.plan import AttentionPlan
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.table_spec import TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import Trim, host_counts, max_entries

REQUESTS = (16, 256)
CALLS = 400
MAX_KV_TOKENS = 8192
WINDOWS = (-1, 1023)
BF16 = torch.bfloat16


def median_us(call: Callable[[], object]) -> float:
    """CPU time of one call by this thread; the first tenth is not counted."""
    samples = []
    for _ in range(CALLS):
        start = time.thread_time_ns()
        call()
        samples.append((time.thread_time_ns() - start) / 1000)
    return statistics.median(samples[CALLS // 10 :])


def planned(trim: Trim, builder: TableBuilder, group: int, batch: int) -> AttentionPlan:
    """A decode's plan that has been planned once, its compiled planner taken away."""
    spec = AttentionSpec(32, 4, 128, 128, 16, BF16, BF16, 0.1, trim.window_left)
    workspace = torch.zeros(1 << 20, dtype=torch.uint8)
    plan = GroupPlanner(spec, workspace, batch, batch).decode(batch, builder.tables(group, batch))
    ones = torch.ones(batch, dtype=torch.int32)
    plan.plan(host_counts(trim, ones, ones))
    plan.wrapper._cached_module = SimpleNamespace(plan=lambda *given: [0])
    return plan


def rows(batch: int) -> dict[str, float]:
    """Microseconds for a decode of so many requests, by what is done and the group's window."""
    trims = [Trim(16, window) for window in WINDOWS]
    specs = tuple(TableSpec(t, max_entries(t, MAX_KV_TOKENS, 1), write_mul=16) for t in trims)
    builder = TableBuilder(specs, 16, batch, batch, "cpu")
    generator = torch.Generator().manual_seed(1)
    lens = torch.randint(1, MAX_KV_TOKENS + 1, (batch,), generator=generator).int()
    ones = torch.ones_like(lens)
    found = {}
    for group, trim in enumerate(trims):
        plan = planned(trim, builder, group, batch)
        counts = host_counts(trim, lens, ones)
        calls: dict[str, Callable[[], object]] = {
            "count": lambda trim=trim: host_counts(trim, lens, ones),  # type: ignore[misc]
            "plan": lambda plan=plan, counts=counts: plan.plan(counts),  # type: ignore[misc]
            "views": lambda group=group: builder.tables(group, batch, batch),  # type: ignore[misc]
        }
        kind = "full" if trim.window_left < 0 else "window"
        for name, call in calls.items():
            found[f"{name}, {kind}, {batch}"] = median_us(call)
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with flashinfer_on_host():
        print(json.dumps({name: us for batch in REQUESTS for name, us in rows(batch).items()}))


if __name__ == "__main__":
    main()
