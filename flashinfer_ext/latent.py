"""FlashInfer attention over latent rows (MLA), planned from host counts.

A row is what one token keeps: its first part is V, all of it K, and every query head reads it.
FlashInfer's kernels take the two parts as caches of their own, which here are views of one row.

FlashInfer's wrapper for them copies indices back from the device in every plan, so its module is
called directly, with the arguments that the wrapper would pass. What the wrapper checks of them is
checked here: the module writes past its arrays where they are too short.
"""

from __future__ import annotations

from typing import Any

import torch

from .layout import FP8_DTYPES
from .plan import check_counts, query_offsets
from .plan_spec import AttentionSpec
from .staging import PinnedRing
from .table_spec import GroupTables
from .trim import HostCounts

# What one plan holds at most, and the query rows of a tile: scheduler.cuh, `MLAPlan`.
MOST_TILES = 16384
TILE_ROWS = 64
# Nine arrays of `MOST_TILES` and five with an entry per multiprocessor, of 4 bytes.
SCHEDULE_BYTES = 1 << 20
CKV_MULTIPLE, KPE_MULTIPLE = 128, 64
FA3_CKV_DIMS = (128, 256, 512)
FP8_DIMS = (512, 64)
PLAIN, CAUSAL = 0, 1  # FlashInfer's MaskMode


def check_shapes(spec: AttentionSpec) -> None:
    """Raise ValueError for what FlashInfer's modules for latent rows are not made for."""
    ckv, kpe = spec.head_dim_vo, spec.head_dim_qk - spec.head_dim_vo
    if ckv % CKV_MULTIPLE or kpe % KPE_MULTIPLE:
        raise ValueError(
            f"latent rows: expected a first part of a multiple of {CKV_MULTIPLE} and a second of a "
            f"multiple of {KPE_MULTIPLE}, got {ckv} and {kpe}"
        )
    if spec.backend == "fa3" and ckv not in FA3_CKV_DIMS:
        raise ValueError(f"latent rows in FA3: expected a first part in {FA3_CKV_DIMS}, got {ckv}")
    is_fp8 = spec.kv_dtype == torch.float8_e4m3fn and spec.q_dtype == torch.bfloat16
    if spec.kv_dtype != spec.q_dtype and not (is_fp8 and (ckv, kpe) == FP8_DIMS):
        raise ValueError(
            f"latent rows: expected the queries' {spec.q_dtype}, or float8_e4m3fn of {FP8_DIMS} "
            f"beside bfloat16, got {spec.kv_dtype}"
        )
    # Where a tile ends inside a query, the kernel's bound on its keys is one too low.
    if 2 * TILE_ROWS % spec.num_qo_heads:
        raise ValueError(
            f"latent rows: expected a number of query heads that divides {2 * TILE_ROWS}, "
            f"got {spec.num_qo_heads}"
        )


def most_tiles(rows: int, batch: int, num_qo_heads: int, device: torch.device) -> int:
    """Bound on what a plan of any batch of so many requests and query rows takes.

    A tile has twice `TILE_ROWS` rows once requests have more than `TILE_ROWS` of heads and queries
    on average, and each request ends in a tile of its own. Splitting histories adds at most one
    piece for every multiprocessor.
    """
    return rows * num_qo_heads // (2 * TILE_ROWS) + 3 * batch + multiprocessors(device)


def multiprocessors(device: torch.device) -> int:
    """Of the device; none on a host."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def load_module(spec: AttentionSpec) -> Any:
    """FlashInfer's module, compiled if it has to be."""
    return module_spec(
        spec.backend, spec.q_dtype, spec.kv_dtype, spec.head_dim_vo, spec.head_dim_qk
    ).build_and_load()


def module_spec(
    backend: str, q_dtype: torch.dtype, kv_dtype: torch.dtype, head_dim_vo: int, head_dim_qk: int
) -> Any:
    """FlashInfer's JitSpec of the module; writes sources, compiles nothing."""
    from flashinfer import jit

    dtypes = (q_dtype, kv_dtype, q_dtype, torch.int32)
    return jit.gen_batch_mla_module(backend, *dtypes, head_dim_vo, head_dim_qk - head_dim_vo, False)


class LatentPlan:
    """One schedule with its tables; made by `GroupPlanner`, in place of an `AttentionPlan`.

    `schedule`: (SCHEDULE_BYTES,) uint8 on the device. With CUDA graphs the batch size and all
    tensors are fixed, and `plan` runs outside the graph before every replay.
    """

    kind = "latent"

    def __init__(
        self,
        spec: AttentionSpec,
        module: Any,
        is_decode: bool,
        in_graph: bool,
        tables: GroupTables,
        ring: PinnedRing,
        float_workspace: torch.Tensor,
        schedule: torch.Tensor,
    ) -> None:
        self.spec = spec
        self.tables = tables
        self.schedule = schedule
        self.in_graph = in_graph
        self._module = module
        self._is_causal = spec.causal and not is_decode
        self._ring = ring
        self._float_workspace = float_workspace
        self._plan_info: Any = None

    def plan(self, counts: HostCounts, q_lens_cpu: torch.Tensor | None = None) -> None:
        """Schedule a batch; one query per request without `q_lens_cpu`, (B,) on the host.

        The current stream must be the one that builds the tables and runs the kernels.
        """
        check_counts(counts, self.tables, self.in_graph)
        offsets = query_offsets(counts.kv_lens_cpu.numel(), q_lens_cpu)
        self._check_size(offsets)
        with self._ring.buffer() as pinned:
            info = self._module.plan(
                self._float_workspace,
                self.schedule,
                pinned,
                offsets,
                counts.indptr_cpu,
                counts.kv_lens_cpu,
                self.spec.num_qo_heads,
                self.spec.head_dim_vo,
                self._is_causal,
            )
        # A graph keeps the launch and the places in the workspaces that it was captured with.
        if self.in_graph and self._plan_info is not None and list(info) != list(self._plan_info):
            raise RuntimeError(f"planned {list(info)} for a graph of {list(self._plan_info)}")
        self._plan_info = info

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        stripe: int = 0,
        out: torch.Tensor | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> torch.Tensor:
        """Attention of one layer.

        q: (rows, Hq, Dk). k: (P, T, 1, Dk) and v: (P, T, 1, Dv), views of the same rows; `k_scale`
        and `v_scale` are what these are multiplied with, and equal. Returns (rows, Hq, Dv).
        """
        if k_scale != v_scale:
            raise ValueError(f"a latent row has one scale, got {k_scale} and {v_scale}")
        spec, ckv = self.spec, self.spec.head_dim_vo
        scale = k_scale if spec.kv_dtype in FP8_DTYPES else 1.0
        if out is None:
            out = q.new_empty((*q.shape[:-1], ckv))
        self._module.run(
            self._float_workspace,
            self.schedule,
            self._plan_info,
            q[..., :ckv],
            q[..., ckv:],
            v.squeeze(2),
            k.squeeze(2)[..., ckv:],
            self.tables.indices[stripe],
            out,
            None,  # log-sum-exp
            CAUSAL if self._is_causal else PLAIN,
            spec.num_qo_heads,
            spec.entry_tokens,
            spec.scale,
            False,  # of base e
            scale,
            scale,
            None,  # scales of single tokens
        )
        return out

    def _check_size(self, offsets: torch.Tensor) -> None:
        rows, batch = int(offsets[-1]), len(offsets) - 1
        most = most_tiles(rows, batch, self.spec.num_qo_heads, self._float_workspace.device)
        if most > MOST_TILES:
            raise ValueError(
                f"latent rows: expected a batch of at most {MOST_TILES} tiles, "
                f"got {rows} queries of {batch} requests"
            )
