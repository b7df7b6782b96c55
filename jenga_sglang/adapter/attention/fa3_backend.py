"""FlashAttention 3 on Jenga pages, through the kernel that SGLang brings for Hopper.

    flash_attn_with_kvcache(q, K pages, V pages, page_table, cache_seqlens, …)

It takes dense page tables and lengths and no plan, so the host has nothing to do for a step but the
tables, and a captured step replays as it stands. Of the pages' strides its Python asks only that
the last is 1. Of latent rows (MLA) the part that rotates is K, and the rest of the row V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from flashinfer_ext.table_spec import TableSpec
from jenga_sglang.adapter.attention.device_backend import Call, DeviceBackend, Step
from jenga_sglang.adapter.attention.step_tables import Rows
from jenga_sglang.adapter.staged import to_device
from jenga_sglang.refusal import refuse

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.model_runner import ModelRunner

# Major compute capabilities that the kernel is compiled for.
ARCHITECTURES = (8, 9)


def load_kernel() -> Callable[..., torch.Tensor]:
    """SGLang's `flash_attn_with_kvcache`. Raises ``SystemExit`` with one line without it."""
    try:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache
    except ImportError as error:
        raise refuse(
            "--attention-backend fa3",
            f"needs sgl_kernel and an NVIDIA GPU ({str(error).splitlines()[0]}); choose flashinfer "
            "or triton, or leave it out without a GPU",
        ) from error
    kernel: Callable[..., torch.Tensor] = flash_attn_with_kvcache
    return kernel


class JengaFA3Backend(DeviceBackend):
    """`--attention-backend fa3` under Jenga."""

    name = "fa3"
    instead = "flashinfer, triton or jenga_torch"

    def __init__(self, runner: ModelRunner) -> None:
        check_gpu()
        self.entry_tokens = runner.page_size
        super().__init__(runner)
        self._see_images_as_text()
        self._attention = load_kernel()
        # Offsets of queries where every request has one, and those of each group's rows in a step.
        self._ones = self._one_each(self.max_batch)
        self._queries: dict[int, tuple[torch.Tensor, int]] = {}

    def _one_each(self, batch: int) -> torch.Tensor:
        return torch.arange(batch + 1, dtype=torch.int32, device=self.device)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        if max_num_tokens != max_bs:
            raise NotImplementedError("CUDA graphs of drafts with --attention-backend fa3")
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        # Graphs may be larger than any batch is, and keep the address.
        self._ones = self._one_each(max(max_bs, self.max_batch))

    def kernels(self, group: int) -> Sequence[str]:
        is_latent = self.pool.layouts[group].is_latent
        return ("fa3_kvcache_mla" if is_latent else "fa3_kvcache",)

    def check_layer(self, layer: RadixAttention) -> None:
        if layer.xai_temperature_len > 0:
            raise ValueError(f"layer {layer.layer_id} scales logits by position")
        if self.kv_dtype(layer) != self.q_dtype:
            raise ValueError(
                f"its kernel reads KV of the queries' dtype {self.q_dtype}, "
                f"not {self.kv_dtype(layer)}"
            )
        group = self.pool.groups[self.pool.place[layer.layer_id].group]
        dims = (layer.qk_head_dim - group.latent_dim, layer.v_head_dim)
        if not has_dims(*dims):
            raise ValueError(f"its kernel has no head dims {dims}")

    def table_spec(self, group: int) -> TableSpec:
        return TableSpec(self.trim(group), 1, write_mul=self.page_size, csr=False)

    def begin(self, step: Step) -> None:
        if step.is_decode:
            one_each = (self._ones[: step.num_tokens + 1], 1)
            self._queries = dict.fromkeys(self.groups, one_each)
        else:
            self._queries = {g: self._offsets(step.groups[g].rows) for g in self.groups}

    def _offsets(self, rows: Rows) -> tuple[torch.Tensor, int]:
        """Where the queries of each row begin, (rows + 1,) int32 on the device, and the most
        queries of one."""
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int32)
        torch.cumsum(rows.queries, 0, out=offsets[1:])
        return to_device(offsets, self.device), int(rows.queries.max())

    def attend(self, call: Call, step: Step) -> None:
        layer, tables, group = call.layer, call.of_group.tables, call.place.group
        offsets, longest = self._queries[group]
        window_left = self.trim(group).window_left
        result = self._attention(
            page_table=tables.block_tables[call.table],
            cache_seqlens=tables.kv_lens,
            cu_seqlens_q=offsets,
            max_seqlen_q=longest,
            softmax_scale=layer.scaling,
            causal=not layer.is_cross_attention,
            window_size=(window_left, 0 if window_left >= 0 else -1),
            softcap=layer.logit_cap,
            sinks=call.sinks,
            out=call.out,
            **self._inputs(call),
        )
        if result.data_ptr() != call.out.data_ptr():
            call.out.copy_(result)

    def _inputs(self, call: Call) -> dict[str, torch.Tensor]:
        """Queries and pages by the kernel's names."""
        q = call.q
        k_pages, v_pages = self.pool.get_kv_buffer(call.layer.layer_id)
        latent_dim = self.pool.groups[call.place.group].latent_dim
        if not latent_dim:
            return {"q": q.contiguous(), "k_cache": k_pages, "v_cache": v_pages}
        return {
            "q": q[..., latent_dim:].contiguous(),
            "qv": q[..., :latent_dim].contiguous(),
            "k_cache": k_pages[..., latent_dim:],
            "v_cache": v_pages,
        }


def has_dims(dim_qk: int, dim_v: int) -> bool:
    """Whether the kernel is compiled for head dims that may differ (FlashAttention's
    `hopper/flash_api.cpp`); V's is a part of its own where queries have one for it."""
    if dim_qk == dim_v:
        return True
    return (128 < dim_qk <= 192 and 96 < dim_v <= 128) or (dim_qk <= 64 and dim_v <= 512)


def check_gpu() -> None:
    """Raise ``SystemExit`` with one line for a GPU that the kernel is not compiled for."""
    if not torch.cuda.is_available():
        return
    major = torch.cuda.get_device_capability()[0]
    if torch.version.hip or major not in ARCHITECTURES:
        raise refuse(
            "--attention-backend fa3",
            f"is for NVIDIA GPUs of compute capability {ARCHITECTURES}, this one has {major}; "
            "choose flashinfer or triton",
        )
