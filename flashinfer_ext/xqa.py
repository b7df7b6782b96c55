"""Decode by FlashInfer's XQA kernel, which takes dense tables and lengths and no plan.

It skips pages before the window, has sinks, and needs nothing from the host per step: the cheapest
metadata where a model has many groups. Demands are `KERNELS["xqa"]` in `limits.py`.
"""

from __future__ import annotations

import torch

from .plan_spec import AttentionSpec
from .table_spec import GroupTables

SEMAPHORE_BYTES = 8 << 20


class XqaDecode:
    """Decode of one group without a plan; safe in a CUDA graph as it stands.

    workspace: (bytes,) uint8 on the device, zeroed once, more than SEMAPHORE_BYTES; groups that
    run one after the other on one stream may share it.
    """

    def __init__(self, spec: AttentionSpec, workspace: torch.Tensor) -> None:
        check_xqa(spec, workspace)
        self.spec = spec
        self.workspace = workspace

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        tables: GroupTables,
        stripe: int = 0,
        sinks: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> torch.Tensor:
        """Attention of one layer, one query per request.

        q: (B, Hq, D), copied unless it is contiguous: the kernel takes its address alone.
        k, v: (P, T, H, D) page views. tables: of a batch of B, dense ones built.
        sinks: (Hq,) float32. Returns (B, Hq, D).
        """
        from flashinfer.decode import xqa_batch_decode_with_kv_cache

        block_tables = tables.block_tables[stripe]
        result: torch.Tensor = xqa_batch_decode_with_kv_cache(
            q.contiguous(),
            (k, v),
            self.workspace,
            block_tables,
            tables.kv_lens.view(torch.uint32),
            block_tables.shape[1] * self.spec.entry_tokens,
            bmm1_scale=self.spec.scale * k_scale,
            bmm2_scale=v_scale,
            window_left=self.spec.window_left,
            out=out,
            sinks=sinks,
        )
        return result


def check_xqa(spec: AttentionSpec, workspace: torch.Tensor) -> None:
    """Raise ValueError for attention that XQA does not have."""
    if spec.soft_cap > 0:
        raise ValueError(f"soft_cap: expected 0 with XQA, got {spec.soft_cap}")
    if spec.head_dim_qk != spec.head_dim_vo or spec.entry_tokens == 1:
        raise ValueError(
            "XQA: expected one head dim and pages of several tokens, "
            f"got {spec.head_dim_qk}, {spec.head_dim_vo} and {spec.entry_tokens}"
        )
    if workspace.dtype != torch.uint8 or workspace.numel() <= SEMAPHORE_BYTES:
        raise ValueError(
            f"workspace: expected more than {SEMAPHORE_BYTES} bytes of uint8, "
            f"got {workspace.numel()} of {workspace.dtype}"
        )
