"""SGLang's own Triton kernels on Jenga pages: any number of groups, no compiler of CUDA needed.

They know a cache of single tokens, so they read the row view: one table entry per token, a row's
number, equal for K and V. An extend reads the history before the new tokens from the cache and the
new ones from its arguments. Of latent rows (MLA) V is the first part of what K has in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import triton
from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd
from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton
from sglang.srt.runtime_context import get_exec
from sglang.srt.utils import get_device_core_count

from flashinfer_ext.table_spec import TableSpec
from flashinfer_ext.views import KV, row_views
from jenga_sglang.adapter.attention.device_backend import Call, DeviceBackend, Step
from jenga_sglang.adapter.attention.latent_rows import has_latent_rows
from jenga_sglang.adapter.attention.step_tables import Rows
from jenga_sglang.adapter.kv_pool import LayerPlace
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.ranges import Range

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.model_runner import ModelRunner

# The kernel that counts splits looks at this many requests in one block, or more.
MIN_COUNTED_BATCH = 256
# Head dims of K and V where the decode kernel reads a latent row once: it takes for V what it has
# loaded of K before the part that rotates.
READ_ONCE = ((576, 512), (288, 256))


@dataclass(frozen=True)
class Partial:
    """Results of a decode's splits: logits (B, Hq, splits, Dv) and lse (B, Hq, splits) float32."""

    logits: torch.Tensor
    lse: torch.Tensor

    @classmethod
    def empty(
        cls, batch: int, heads: int, splits: int, dim_v: int, device: torch.device
    ) -> Partial:
        floats = {"dtype": torch.float32, "device": device}
        return cls(
            torch.empty((batch, heads, splits, dim_v), **floats),
            torch.empty((batch, heads, splits), **floats),
        )


# Further than any token is from another.
FAR = 1 << 30


@dataclass(frozen=True)
class ImageMask:
    """What each new token of a batch reads, request by request: ``cells`` (all,) uint8 are rows of
    keys, a request's begin at ``indptr`` (requests + 1,) int64. The keys are those of its table and
    the new ones; or, where it ``is_of_new``, the new ones alone, and ``shifts`` (requests,) int32
    tell the kernel, which counts those of the table, by how much its rows are shorter."""

    cells: torch.Tensor | None = None
    indptr: torch.Tensor | None = None
    shifts: torch.Tensor | None = None
    is_of_new: bool = True


NO_MASK = ImageMask()


def image_mask(
    requests: Sequence[tuple[int, int, int, Sequence[Range]]], window: int, device: torch.device
) -> ImageMask:
    """The mask of ``requests``: where each one's new tokens start and stop, how many tokens before
    them its table has, and its images. ``window`` tokens before a query are read, or all for -1.

    A window is in the mask, for that of the kernel would end in front of the end of an image too.
    Without one the table is read whole, which may be too long for a mask.
    """
    has_window = window >= 0
    masks = []
    for start, stop, kept, images in requests:
        first = start - kept if has_window else start
        q = torch.arange(start, stop, device=device)[:, None]
        k = torch.arange(first, stop, device=device)[None]
        mask = k <= q
        if has_window:
            mask &= k >= q - window
        for image in images:
            begin = max(image.start, start)
            part = (
                slice(begin - start, image.stop - start),
                slice(begin - first, image.stop - first),
            )
            mask[part] |= (k > q)[part]
        masks.append(mask)
    sizes = torch.tensor([0, *(mask.numel() for mask in masks)])
    shifts = torch.tensor([-kept for _, _, kept, _ in requests], dtype=torch.int32)
    return ImageMask(
        torch.cat([mask.flatten() for mask in masks]).to(torch.uint8),
        sizes.cumsum(0).to(device),
        None if has_window else shifts.to(device),
        is_of_new=not has_window,
    )


class JengaTritonBackend(DeviceBackend):
    """`--attention-backend triton` under Jenga."""

    name = "triton"
    instead = "jenga_torch"
    entry_tokens = 1
    # The kernels multiply an entry by a stride in the entry's own width.
    index_dtype = torch.int64

    def __init__(self, runner: ModelRunner, drafted: int = 0) -> None:
        super().__init__(runner, drafted)
        self._cores = get_device_core_count(runner.gpu_id)
        self.max_splits = self._most_splits(runner)
        self._rows: dict[int, KV] = {}
        for layer_id, place in self.pool.place.items():
            self._rows[layer_id] = self._row_views(place)
        self._splits: dict[int, torch.Tensor] = {}
        self._graph_splits: dict[int, torch.Tensor] = {}
        self._partial: dict[tuple[int, int], Partial] = {}
        self._graph_partial: dict[tuple[int, int], Partial] = {}
        self._q_offsets: dict[int, tuple[torch.Tensor, int]] = {}
        self._masks: dict[int, ImageMask | None] = {}
        self._graph_offsets: dict[int, torch.Tensor] = {}

    def _row_views(self, place: LayerPlace) -> KV:
        """K and V as the kernels read them."""
        k, v = row_views(self.pool.buffer, self.pool.layouts[place.group], place.layer)
        latent_dim = self.pool.groups[place.group].latent_dim
        return (k, k[..., :latent_dim]) if latent_dim else (k, v)

    def _most_splits(self, runner: ModelRunner) -> int:
        """Pieces that the longest history is cut into; of latent rows, which all heads read
        together, as many as SGLang takes to occupy the GPU."""
        most: int = get_exec().kernel.triton_attention_num_kv_splits
        if not has_latent_rows(self.pool):
            return most
        from sglang.srt.layers.attention.triton_backend import _mla_decode_kv_splits_cap

        longest = runner.model_config.context_len
        return int(_mla_decode_kv_splits_cap(most, self._cores, longest))

    def kernels(self, group: int) -> Sequence[str]:
        return ("row",)

    def check_layer(self, layer: RadixAttention) -> None:
        """Nothing: what has a row view, the kernels can read."""

    def table_spec(self, group: int) -> TableSpec:
        rows = self.pool.layouts[group].rows_per_page
        return TableSpec(self.trim(group), 1, page_mul=rows, write_mul=rows, dense=False)

    def rows(self, kv_lens: torch.Tensor, q_lens: torch.Tensor) -> Rows:
        return Rows.whole(kv_lens, q_lens).before()

    def chunk_rows(self, kv_lens: torch.Tensor, q_lens: torch.Tensor, chunk_tokens: int) -> Rows:
        before = Rows.parts(kv_lens, q_lens, chunk_tokens).before()
        # A part that opens a chunk sees nothing before itself.
        opens = before.kv_lens % chunk_tokens == 0
        return replace(before, kv_lens=before.kv_lens.masked_fill(opens, 0))

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        rows = present(self._captured, "set above").rows
        for group in self.groups:
            self._graph_splits[group] = torch.empty(max_bs, dtype=torch.int32, device=self.device)
            self._graph_offsets[group] = torch.zeros(
                rows + 1, dtype=torch.int64, device=self.device
            )
            for layer in self.layers[group]:
                key = (layer.tp_q_head_num, layer.v_head_dim)
                if key not in self._graph_partial:
                    self._graph_partial[key] = self._new_partial(max_bs, key)

    def cache(self, layer_id: int) -> KV:
        k, v = self._rows[layer_id]
        is_latent = self.pool.layouts[self.pool.place[layer_id].group].is_latent
        return k.unsqueeze(1), (v[..., :0] if is_latent else v).unsqueeze(1)

    def begin(self, step: Step) -> None:
        if step.is_decode:
            self._count_splits(step)
            self._partial = self._graph_partial if step.in_graph else {}
        else:
            self._q_offsets = {g: self._offsets(step, g) for g in self.groups}
            self._masks = {g: self._mask(step, g) for g in self.groups}

    def attend(self, call: Call, step: Step) -> None:
        if step.is_decode:
            self._decode(call, step)
        else:
            self._extend(call, step)

    # -- decode -------------------------------------------------------------------------------

    def _count_splits(self, step: Step) -> None:
        """Into how many pieces each request's history is cut, per group."""
        batch = step.num_tokens
        for group in self.groups:
            buffer = self._graph_splits[group] if step.in_graph else None
            if buffer is None:
                buffer = torch.empty(batch, dtype=torch.int32, device=self.device)
            splits = self._splits[group] = buffer[:batch]
            if self._cores <= 0:
                splits.fill_(self.max_splits)
                continue
            layer = self.layers[group][0]
            get_num_kv_splits_triton[(1,)](
                splits,
                step.groups[group].tables.kv_lens,
                batch,
                1,
                layer.tp_q_head_num,
                layer.tp_k_head_num,
                self.max_splits,
                self._cores,
                MAX_NUM_SEQ=max(MIN_COUNTED_BATCH, triton.next_power_of_2(batch)),
            )

    def _decode(self, call: Call, step: Step) -> None:
        layer, tables = call.layer, call.of_group.tables
        key = (layer.tp_q_head_num, layer.v_head_dim)
        if key not in self._partial:
            self._partial[key] = self._new_partial(step.num_tokens, key)
        partial = self._partial[key]
        decode_attention_fwd(
            call.q,
            *self._rows[layer.layer_id],
            call.out,
            tables.indptr,
            tables.indices[call.table],
            partial.logits,
            partial.lse,
            self._splits[call.place.group],
            self.max_splits,
            layer.scaling,
            *self.descales(layer),
            logit_cap=layer.logit_cap,
            sinks=call.sinks,
            xai_temperature_len=layer.xai_temperature_len,
            has_mla=self._reads_once(layer),
        )

    def _reads_once(self, layer: RadixAttention) -> bool:
        is_latent = self.pool.layouts[self.pool.place[layer.layer_id].group].is_latent
        return is_latent and (layer.qk_head_dim, layer.v_head_dim) in READ_ONCE

    def _new_partial(self, batch: int, key: tuple[int, int]) -> Partial:
        heads, dim_v = key
        return Partial.empty(batch, heads, self.max_splits, dim_v, self.device)

    # -- extend -------------------------------------------------------------------------------

    def _offsets(self, step: Step, group: int) -> tuple[torch.Tensor, int]:
        """Where the queries of each row begin, (rows + 1,) int64 on the device, and the most
        queries of one."""
        queries = step.groups[group].rows.queries
        offsets = torch.zeros(len(queries) + 1, dtype=torch.int64)
        torch.cumsum(queries, 0, out=offsets[1:])
        if not step.in_graph:
            return offsets.to(self.device, non_blocking=True), int(queries.max())
        kept = self._graph_offsets[group][: len(offsets)]
        kept.copy_(offsets, non_blocking=True)
        # What a launch is made for must not depend on where chunks end.
        return kept, present(self._captured, "there is a graph").queries

    def _window(self, group: int, mask: ImageMask) -> int:
        """The kernel's: -1 is none. It has regard to a mask's shifts only beside a window."""
        if mask.cells is None:
            return int(self.trim(group).window_left)
        return FAR if mask.is_of_new else -1

    def _mask(self, step: Step, group: int) -> ImageMask | None:
        """What the group's queries read, where some read an image whole."""
        how = self.pool.whole_images
        if how is None or not any(step.images):
            return None
        if not how.are_seen_by(self.pool.manager.dependencies[group]):
            return None
        of_group = step.groups[group]
        starts = of_group.rows.kv_lens.tolist()
        stops = (of_group.rows.kv_lens + of_group.rows.queries).tolist()
        kept = of_group.counts.indptr_cpu.diff().tolist()
        spans = list(zip(starts, stops, kept, step.images, strict=True))
        return image_mask(spans, self.trim(group).window_left, self.device)

    def _extend(self, call: Call, step: Step) -> None:
        layer, place, tables = call.layer, call.place, call.of_group.tables
        k, v = call.k, call.v
        k_rows, v_rows = self._rows[layer.layer_id]
        if layer.is_cross_attention:
            # All that is read is in the rows by now: there is no part of it that is new.
            k, v = k_rows[:1], v_rows[:1]
        elif k is None or v is None:
            # The layer shares another's KV, which is in its rows already. A token that the group
            # does not keep is one of a dummy batch.
            slots = self.write_slots(step, place).clamp(min=0)
            k, v = k_rows[slots], v_rows[slots]
        offsets, longest = self._q_offsets[place.group]
        mask = self._masks[place.group] or NO_MASK
        extend_attention_fwd(
            call.q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            call.out,
            k_rows,
            v_rows,
            offsets,
            tables.indptr,
            tables.indices[call.table],
            mask.cells,
            # Causal, the kernel would not look behind a block of queries.
            not layer.is_cross_attention and mask.cells is None,
            mask.indptr,
            longest,
            *self.descales(layer),
            layer.scaling,
            logit_cap=layer.logit_cap,
            skip_prefix_custom_mask=mask.is_of_new,
            sliding_window_size=self._window(place.group, mask),
            window_kv_offsets=mask.shifts,
            skip_extend=layer.is_cross_attention,
            sinks=call.sinks,
            xai_temperature_len=layer.xai_temperature_len,
        )
