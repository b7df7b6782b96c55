"""FlashInfer attention of one layer group, planned from host page counts.

    counts = host_counts(trim, kv_lens_cpu, q_lens_cpu)     # no device involved
    plan = planner.decode(batch_size, tables)               # or planner.prefill(tables)
    plan.plan(counts, q_lens_cpu)                           # once per step, for all layers
    out = plan.run(q, k, v, stripe=0)                       # once per layer

The device arrays come from the table builder, which writes the same counts; so planning copies
nothing back, and the only copies to the device are the schedule and a prefill's query offsets. A
plan depends on lengths alone: it serves every layer and every stripe of its group.

FlashInfer's own `plan` runs once per wrapper, to load modules and to set what stays. After that
the module's planner is called directly, with the arguments that FlashInfer would have passed.
"""

from __future__ import annotations

from typing import Any

import torch

from .plan_spec import AttentionSpec
from .staging import PinnedRing
from .table_spec import GroupTables
from .trim import HostCounts
from .versions import fa2_planner_tail, installed

INDEX_BYTES = 4
# What FlashInfer keeps on its wrappers and this module reads or sets.
WRAPPER_FIELDS = (
    "_backend",
    "_batch_size",
    "_cached_module",
    "_float_workspace_buffer",
    "_int_workspace_buffer",
    "_paged_kv_indices_buf",
    "_paged_kv_indptr_buf",
    "_paged_kv_last_page_len_buf",
    "_pin_memory_int_workspace_buffer",
    "_plan_info",
)


class AttentionPlan:
    """One FlashInfer wrapper with its tables; made by `GroupPlanner`.

    `kind` is "decode" (CUDA cores), "decode_tc" or "prefill". With CUDA graphs the batch size and
    all tensors are fixed, and `plan` runs outside the graph before every replay.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        kind: str,
        wrapper: Any,
        tables: GroupTables,
        ring: PinnedRing,
        qo_indptr: torch.Tensor,
    ) -> None:
        self.spec = spec
        self.kind = kind
        self.wrapper = wrapper
        self.tables = tables
        self._ring = ring
        self._qo_indptr = qo_indptr
        self._is_first = True

    def plan(self, counts: HostCounts, q_lens_cpu: torch.Tensor | None = None) -> None:
        """Schedule a batch; one query per request without `q_lens_cpu`, (B,) on the host.

        The current stream must be the one that builds the tables and runs the kernels.
        """
        check_counts(counts, self.tables, self.wrapper.is_cuda_graph_enabled)
        qo_indptr_cpu = query_offsets(counts.kv_lens_cpu.numel(), q_lens_cpu)
        with self._ring.buffer() as pinned:
            offset_bytes = qo_indptr_cpu.numel() * INDEX_BYTES
            self.wrapper._pin_memory_int_workspace_buffer = pinned[:-offset_bytes]
            if self._is_first:
                self._plan_first(counts, qo_indptr_cpu)
            else:
                self._plan_again(counts, qo_indptr_cpu)
            if self.kind == "prefill":
                staged = pinned[-offset_bytes:].view(torch.int32)
                staged.copy_(qo_indptr_cpu)
                self._bind_queries(staged, int(qo_indptr_cpu[-1]))
        self._bind_tables(counts.kv_lens_cpu.numel())

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *extra: torch.Tensor,
        stripe: int = 0,
        out: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Attention of one layer.

        q: (rows, Hq, Dk). k: (P, T, H, Dk), v: (P, T, H, Dv), views of the pool; in the row view
        (N, H, D), tokens count as pages. extra: the variant's tensor. options go to FlashInfer
        (`k_scale`, `v_scale`, `return_lse`, ...). Returns (rows, Hq, Dv), and the base-2
        log-sum-exp if asked for.
        """
        if k.dim() == 3:
            k, v = k.unsqueeze(1), v.unsqueeze(1)
        self.wrapper._paged_kv_indices_buf = self.tables.indices[stripe]
        result: torch.Tensor = self.wrapper.run(q, (k, v), *extra, out=out, **options)
        return result

    def _plan_first(self, counts: HostCounts, qo_indptr_cpu: torch.Tensor) -> None:
        """FlashInfer's own plan; it also says what a FlashInfer of another version lacks."""
        spec = self.spec
        options: dict[str, Any] = {
            "sm_scale": spec.scale,
            "window_left": spec.window_left,
            "logits_soft_cap": spec.soft_cap,
            "q_data_type": spec.q_dtype,
            "kv_data_type": spec.kv_dtype,
        }
        heads = (spec.num_qo_heads, spec.num_kv_heads, spec.head_dim_qk, spec.entry_tokens)
        arrays: list[torch.Tensor] = [
            counts.indptr_cpu,
            self.tables.indices[0],
            counts.last_page_len_cpu,
        ]
        if self.kind == "prefill":
            options |= {"head_dim_vo": spec.head_dim_vo, "causal": spec.causal}
            arrays.insert(0, qo_indptr_cpu)
        self.wrapper.plan(*arrays, *heads, **options)
        missing = [name for name in WRAPPER_FIELDS if not hasattr(self.wrapper, name)]
        if missing:
            raise RuntimeError(f"flashinfer: {installed()} lacks {missing}, which was there")
        self._is_first = False

    def _plan_again(self, counts: HostCounts, qo_indptr_cpu: torch.Tensor) -> None:
        """The module's planner alone, on host arrays."""
        wrapper = self.wrapper
        workspaces = [
            wrapper._float_workspace_buffer,
            wrapper._int_workspace_buffer,
            wrapper._pin_memory_int_workspace_buffer,
        ]
        if self.kind == "decode":
            rest = self._cuda_core_arguments(counts)
        else:
            rest = self._tensor_core_arguments(counts, qo_indptr_cpu)
        wrapper._plan_info = wrapper._cached_module.plan(*workspaces, *rest)

    def _cuda_core_arguments(self, counts: HostCounts) -> list[Any]:
        spec = self.spec
        return [
            counts.indptr_cpu,
            counts.kv_lens_cpu.numel(),
            spec.num_qo_heads,
            spec.num_kv_heads,
            spec.entry_tokens,
            self.wrapper.is_cuda_graph_enabled,
            spec.window_left,
            spec.soft_cap,
            spec.head_dim_qk,
            spec.head_dim_vo,
            torch.empty(0, dtype=spec.q_dtype),
            torch.empty(0, dtype=spec.kv_dtype),
        ]

    def _tensor_core_arguments(self, counts: HostCounts, qo_indptr_cpu: torch.Tensor) -> list[Any]:
        spec = self.spec
        # A captured prefill is scheduled for the number of rows of its capture.
        captured_rows = getattr(self.wrapper, "_max_total_num_rows", None)
        arguments = [
            qo_indptr_cpu,
            counts.indptr_cpu,
            counts.kv_lens_cpu,
            captured_rows or int(qo_indptr_cpu[-1]),
            counts.kv_lens_cpu.numel(),
            spec.num_qo_heads,
            spec.num_kv_heads,
            spec.entry_tokens,
            self.wrapper.is_cuda_graph_enabled,
            spec.head_dim_qk,
            spec.head_dim_vo,
            spec.causal and self.kind == "prefill",
            spec.window_left,
        ]
        if self.wrapper._backend != "fa2":
            return arguments
        return arguments + fa2_planner_tail(installed(), is_decode=self.kind == "decode_tc")

    def _bind_queries(self, staged: torch.Tensor, rows: int) -> None:
        """staged: (B + 1,) int32 pinned, copied to the device in stream order."""
        target = self._qo_indptr[: staged.numel()]
        target.copy_(staged, non_blocking=True)
        self.wrapper._qo_indptr_buf = target
        self.wrapper._qo_indptr_last = rows

    def _bind_tables(self, batch: int) -> None:
        """Point the wrapper at the builder's arrays; in a graph they are those it was made with."""
        wrapper, tables = self.wrapper, self.tables
        wrapper._batch_size = batch
        wrapper._paged_kv_indptr_buf = tables.indptr[: batch + 1]
        wrapper._paged_kv_last_page_len_buf = tables.last_page_len[:batch]
        if self.kind == "decode_tc" and not wrapper.is_cuda_graph_enabled:
            # One query per request: the offsets are 0, 1, 2, ...
            wrapper._qo_indptr_buf = self._qo_indptr[: batch + 1]


def query_offsets(batch: int, q_lens_cpu: torch.Tensor | None) -> torch.Tensor:
    """(B + 1,) int32 on the host: the first query row of each request, and the end."""
    if q_lens_cpu is None:
        return torch.arange(batch + 1, dtype=torch.int32)
    if q_lens_cpu.shape != (batch,) or q_lens_cpu.device.type != "cpu":
        raise ValueError(
            f"q_lens_cpu: expected ({batch},) on the host, "
            f"got {tuple(q_lens_cpu.shape)} on {q_lens_cpu.device}"
        )
    offsets = torch.zeros(batch + 1, dtype=torch.int32)
    torch.cumsum(q_lens_cpu.to(torch.int32), 0, out=offsets[1:])
    return offsets


def check_counts(counts: HostCounts, tables: GroupTables, fixed_batch: bool) -> None:
    """Raise ValueError unless the batch fits the table buffers."""
    batch, most = counts.kv_lens_cpu.numel(), tables.last_page_len.numel()
    if batch > most or (fixed_batch and batch != most):
        relation = "exactly" if fixed_batch else "at most"
        raise ValueError(f"batch: expected {relation} {most} requests, got {batch}")
    if counts.num_entries > tables.indices[0].numel():
        raise ValueError(
            f"entries: expected at most {tables.indices[0].numel()}, got {counts.num_entries}"
        )
