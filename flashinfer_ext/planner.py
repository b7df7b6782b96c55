"""Makes the FlashInfer wrappers of one layer group and owns what they share.

| memory             | shared by                                                                   |
|--------------------|-----------------------------------------------------------------------------|
| float workspace    | all groups: kernels of one stream use it one after the other                |
| schedule, graphs   | all captured batch sizes of the group: one graph replays at a time          |
| schedule, eager    | none: a step may hold a decode and a prefill of the group                   |
| pinned ring        | all wrappers of the group                                                   |
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from .latent import SCHEDULE_BYTES, LatentPlan, load_module
from .plan import INDEX_BYTES, AttentionPlan
from .plan_spec import AttentionSpec, int_workspace_bytes
from .staging import PinnedRing
from .table_spec import GroupTables

# Decode or prefill, and the queries of a captured batch.
Key = tuple[str, int | None]
Plan = AttentionPlan | LatentPlan


class GroupPlanner:
    """Plans of one group: one per captured size of decode and prefill, and one each for eager ones.

    float_workspace: (bytes,) uint8 on the device, zeroed, shared with other planners.
    `max_rows` bounds the query rows of a batch, `in_flight` the steps the host may run ahead.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        float_workspace: torch.Tensor,
        max_batch: int,
        max_rows: int,
        in_flight: int = 2,
    ) -> None:
        self.spec = spec
        self.max_batch = max_batch
        self.device = float_workspace.device
        self.float_workspace = float_workspace
        self.schedule_bytes = (
            SCHEDULE_BYTES
            if spec.is_latent
            else int_workspace_bytes(max_batch, max_rows, spec.num_qo_heads)
        )
        offset_bytes = (max_batch + 1) * INDEX_BYTES
        self.ring = PinnedRing(self.schedule_bytes + offset_bytes, in_flight + 1, self.device)
        self._offsets = torch.arange(max_batch + 1, dtype=torch.int32, device=self.device)
        self._graph_schedule = self._new_schedule()
        self._plans: dict[Key, Plan] = {}

    def decode(self, batch_size: int, tables: GroupTables, cuda_graph: bool = False) -> Plan:
        """Plan for one query per request.

        With `cuda_graph` the plan belongs to this batch size and to these tables, of exactly
        `batch_size` requests, for good; otherwise it takes any batch up to the tables' size.
        """
        captured = batch_size if cuda_graph else None
        return self._plan(("decode", captured), self._decode_kind(), tables)

    def prefill(self, tables: GroupTables, captured_queries: int | None = None) -> Plan:
        """Plan for any number of queries per request.

        With `captured_queries` the plan belongs to a CUDA graph: to a batch of that many queries
        and to these tables, of exactly its requests, for good.
        """
        return self._plan(("prefill", captured_queries), "prefill", tables)

    def _decode_kind(self) -> str:
        # The decode wrapper asks for modules of one head dim, and only a prefill has variants.
        if self.spec.variant is not None or self.spec.head_dim_qk != self.spec.head_dim_vo:
            return "prefill"
        return "decode_tc" if self.spec.decodes_on_tensor_cores else "decode"

    @cached_property
    def _latent_module(self) -> Any:
        return load_module(self.spec)

    def _plan(self, key: Key, kind: str, tables: GroupTables) -> Plan:
        plan = self._plans.get(key)
        cuda_graph = key[1] is not None
        if plan is None:
            is_decode = key[0] == "decode"
            plan = self._plans[key] = (
                self._new_latent_plan(is_decode, tables, cuda_graph)
                if self.spec.is_latent
                else self._new_plan(kind, tables, cuda_graph)
            )
        elif not cuda_graph:
            plan.tables = tables
        return plan

    def _new_plan(self, kind: str, tables: GroupTables, cuda_graph: bool) -> AttentionPlan:
        offsets = self._offsets
        if kind == "prefill":
            # An eager plan is kept for batches of any size.
            batch = tables.last_page_len.numel() if cuda_graph else self.max_batch
            offsets = torch.zeros(batch + 1, dtype=torch.int32, device=self.device)
        wrapper = self._wrapper(kind, tables, offsets, cuda_graph)
        wrapper._int_workspace_buffer = self._schedule(cuda_graph)
        return AttentionPlan(self.spec, kind, wrapper, tables, self.ring, offsets)

    def _new_latent_plan(self, is_decode: bool, tables: GroupTables, cuda_graph: bool) -> Plan:
        return LatentPlan(
            self.spec,
            self._latent_module,
            is_decode,
            cuda_graph,
            tables,
            self.ring,
            self.float_workspace,
            self._schedule(cuda_graph),
        )

    def _schedule(self, cuda_graph: bool) -> torch.Tensor:
        return self._graph_schedule if cuda_graph else self._new_schedule()

    def _new_schedule(self) -> torch.Tensor:
        return torch.empty(self.schedule_bytes, dtype=torch.uint8, device=self.device)

    def _wrapper(
        self, kind: str, tables: GroupTables, offsets: torch.Tensor, cuda_graph: bool
    ) -> Any:
        from flashinfer import (
            BatchDecodeWithPagedKVCacheWrapper,
            BatchPrefillWithPagedKVCacheWrapper,
        )

        options: dict[str, Any] = {"backend": self.spec.backend, "use_cuda_graph": cuda_graph}
        if kind != "prefill":
            return BatchDecodeWithPagedKVCacheWrapper(
                self.float_workspace,
                use_tensor_cores=kind == "decode_tc",
                paged_kv_indptr_buffer=tables.indptr,
                paged_kv_indices_buffer=tables.indices[0],
                paged_kv_last_page_len_buffer=tables.last_page_len,
                **options | {"backend": "fa2"},
            )
        if variant := self.spec.variant:
            options |= {"jit_args": variant.jit_args(), "jit_kwargs": variant.jit_kwargs()}
            options["variant_owns_mask"] = variant.owns_mask
        return BatchPrefillWithPagedKVCacheWrapper(
            self.float_workspace,
            qo_indptr_buf=offsets,
            paged_kv_indptr_buf=tables.indptr,
            paged_kv_indices_buf=tables.indices[0],
            paged_kv_last_page_len_buf=tables.last_page_len,
            **options,
        )
