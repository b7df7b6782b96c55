"""What the attention backends that run kernels on Jenga pages have in common.

    init_forward_metadata   the step's tables, one launch for all groups          once a batch
    forward_*               the layer's K and V to their pages, then attention    once a layer

Everything the kernels read that changes from step to step lies in the tables. They are built on
the stream of the forward pass before a CUDA graph is replayed, into buffers that the graph was
captured with; a step that the host prepares early cannot disturb the one at work.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend, SharedReadEnds
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from flashinfer_ext import check_kernel_limits
from flashinfer_ext.kv_write import Fp8Scales, KvWriter
from flashinfer_ext.layout import FP8_DTYPES, GroupLayout
from flashinfer_ext.table_spec import TableSpec
from flashinfer_ext.views import KV
from jenga_sglang import flags
from jenga_sglang.adapter.attention.latent_rows import (
    attend_over_rows,
    has_latent_rows,
    keeps_rows,
)
from jenga_sglang.adapter.attention.shared import Shared
from jenga_sglang.adapter.attention.step_tables import (
    Captured,
    EncoderInputs,
    GroupStep,
    Rows,
    StepTables,
    trim_of,
)
from jenga_sglang.adapter.discovery import attention_layers
from jenga_sglang.adapter.encoder import new_locs
from jenga_sglang.adapter.kv_pool import JengaKVPool, LayerPlace
from jenga_sglang.adapter.whole_images import images_of_batch
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.ranges import Range
from jenga_sglang.refusal import refuse

if TYPE_CHECKING:
    from sglang.srt.layers.attention.verify_mask import VerifyMask
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One forward pass. ``groups`` has an entry per layer group with attention layers, by its
    number; ``in_graph`` says that kernels may be captured, and tensors must stay in place.
    ``images`` are, by request, those whose tokens read one another."""

    is_decode: bool
    in_graph: bool
    num_tokens: int
    groups: dict[int, GroupStep]
    images: Sequence[tuple[Range, ...]] = ()


@dataclass(slots=True)
class Call:
    """What one layer attends with in one step: q (tokens, Hq, D), k and v of the new tokens if the
    layer made any, its place in the pool, its group's step and its table's number there. The
    results fill out (tokens, Hq, Dv)."""

    layer: RadixAttention
    q: torch.Tensor
    k: torch.Tensor | None
    v: torch.Tensor | None
    sinks: torch.Tensor | None
    out: torch.Tensor
    place: LayerPlace
    of_group: GroupStep
    table: int


class DeviceBackend(AttentionBackend):
    """Base of `--attention-backend flashinfer` and `triton` under Jenga.

    One that serves a step of a draft model reads ``drafted`` tokens behind those that there are for
    good, the step's own among them. Drafts that are verified are chains, text like any other.
    """

    needs_cpu_seq_lens = True
    # Dummy batches of a warm-up must not be larger than real ones can be.
    extend_dummy_seqs_capped_by_req_pool = True
    name: str
    instead: str  # backends that serve what this one does not
    entry_tokens: int
    index_dtype = torch.int32

    def __init__(self, runner: ModelRunner, drafted: int = 0) -> None:
        super().__init__()
        self.drafted = drafted
        pool = runner.token_to_kv_pool
        if not isinstance(pool, JengaKVPool):
            raise refuse(
                f"--attention-backend {self.name}", f"was built for {flags.FLAG} jenga: add it"
            )
        self.pool = pool
        pool.drafts_are_chains = True
        self.device = torch.device(runner.device)
        self.page_size = pool.page_size
        self.max_batch = runner.req_to_token_pool.size
        self.req_to_token = runner.req_to_token_pool.req_to_token
        self.q_dtype = runner.dtype
        self.layers: dict[int, list[RadixAttention]] = {}
        for layer in attention_layers(runner.model):
            if keeps_rows(pool, layer):
                self.layers.setdefault(pool.place[layer.layer_id].group, []).append(layer)
        self.groups = sorted(self.layers)
        # Others' layers may be in the same groups: what there are tables of here.
        self._stripes = {group: self._stripes_of(group) for group in self.groups}
        self._check_groups()
        if has_latent_rows(pool):
            attend_over_rows(self.name)
        self._chunks = sorted({t.chunk_tokens for t in map(self.trim, self.groups)} - {0})
        self._has_encoder = any(map(self.of_encoder, self.groups))
        self._shared = Shared.of(pool)
        self._specs = [self._table_spec(g) for g in self.groups]
        self._eager = self._tables()
        self._graph: StepTables | None = None
        self._captured: Captured | None = None
        self._verify_mask: VerifyMask | None = None
        self._step: Step | None = None
        self._writers: dict[tuple[int, bool], KvWriter] = {}

    # -- what a backend says of itself --------------------------------------------------------

    @abstractmethod
    def kernels(self, group: int) -> Sequence[str]:
        """The kernels that serve the group, by their names in `flashinfer_ext.limits`."""

    @abstractmethod
    def check_layer(self, layer: RadixAttention) -> None:
        """Raise ``ValueError`` for a layer that the kernels cannot serve."""

    @abstractmethod
    def table_spec(self, group: int) -> TableSpec:
        """The group's tables; rows and stripes are filled in by the caller."""

    def rows(self, kv_lens: torch.Tensor, q_lens: torch.Tensor) -> Rows:
        """Rows of an extend batch whose new tokens are the last ``q_lens`` of ``kv_lens``."""
        return Rows.whole(kv_lens, q_lens)

    def chunk_rows(self, kv_lens: torch.Tensor, q_lens: torch.Tensor, chunk_tokens: int) -> Rows:
        """The same for a group that sees chunks."""
        return Rows.parts(kv_lens, q_lens, chunk_tokens)

    @abstractmethod
    def begin(self, step: Step) -> None:
        """Prepare what the step's kernels need beyond the tables."""

    def cache(self, layer_id: int) -> KV:
        """The layer's K and V as (entries, tokens, heads, dim), for `kv_write` at write slots. Of
        latent rows K is all: V has no elements."""
        k, v = self.pool.get_kv_buffer(layer_id)
        return k, v[..., :0] if self.pool.layouts[self.pool.place[layer_id].group].is_latent else v

    @abstractmethod
    def attend(self, call: Call, step: Step) -> None:
        """Fill ``call.out`` with the layer's attention."""

    # -- start-up -----------------------------------------------------------------------------

    def _check_groups(self) -> None:
        for group in self.groups:
            try:
                trim_of(self.pool.manager.dependencies[group], self.entry_tokens)
                for layer in self.layers[group]:
                    check_attention(layer)
                    self.check_layer(layer)
                layout = self.pool.layouts[group]
                problems = check_kernel_limits(self.pool.buffer, layout, self.kernels(group))
                if problems:
                    raise ValueError("; ".join(problems))
            except ValueError as error:
                name = self.pool.groups[group].spec.name
                raise refuse(
                    f"--attention-backend {self.name}",
                    f"cannot serve the layer group '{name}' ({error}); choose "
                    f"--attention-backend {self.instead}",
                ) from error

    def _see_images_as_text(self) -> None:
        """For kernels without a mask."""
        if self.pool.whole_images is not None:
            self.pool.whole_images = None
            logger.warning(
                "The tokens of an image see those before them only with --attention-backend %s; "
                "this model was trained to see the whole image, as it does with triton.",
                self.name,
            )

    def trim(self, group: int) -> Any:
        """What the group's table has of a history."""
        return trim_of(self.pool.manager.dependencies[group], self.entry_tokens)

    def _stripes_of(self, group: int) -> range:
        stripes = [self.pool.place[layer.layer_id].stripe for layer in self.layers[group]]
        return range(min(stripes), max(stripes) + 1)

    def table_of(self, place: LayerPlace) -> int:
        """Which of the backend's tables of its group is the layer's."""
        return place.stripe - self._stripes[place.group].start

    def of_encoder(self, group: int) -> bool:
        """Whether the group's layers read what an encoder made, and nothing of the text."""
        return group in self.pool.manager.memory.encoder_groups

    def _table_spec(self, group: int) -> TableSpec:
        chunk = self.trim(group).chunk_tokens
        row = 1 + self._chunks.index(chunk) if chunk else 0
        of_encoder = self.of_encoder(group)
        return replace(
            self.table_spec(group),
            num_stripes=len(self._stripes[group]),
            first_table=self._shared.page_tables.first_table(group) + self._stripes[group].start,
            batch_row=1 + len(self._chunks) if of_encoder else row,
            loc_row=int(of_encoder),
        )

    def _tables(self, most: Captured | None = None) -> StepTables:
        return StepTables(
            self._shared.page_tables,
            self.req_to_token,
            self._specs,
            self.page_size,
            self.index_dtype,
            most,
        )

    # -- CUDA graphs --------------------------------------------------------------------------

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        queries, odd = divmod(max_num_tokens, max_bs)
        if odd:
            raise ValueError(
                f"CUDA graphs: expected tokens of {max_bs} requests, got {max_num_tokens}"
            )
        parts = [most_parts(queries, chunk) for chunk in self._chunks]
        self._captured = Captured(max_bs, queries, max_bs * max([1, *parts]))
        self._graph = self._tables(self._captured)
        logger.info(
            "Page tables of captured steps: %s for %d requests of %d tokens in %d tables",
            human_bytes(self._graph.num_bytes),
            max_bs,
            queries,
            self._graph.builder.num_tables,
        )

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        # A padding request reads one token of the null page; no kernel needs an empty history.
        return 1

    def shared_read_ends(self, fm: ForwardMode) -> SharedReadEnds:
        """What the scheduler may write over is read once, while the tables are built: request rows
        and lengths. Where there is an encoder, the model reads more of it."""
        if fm in (ForwardMode.DECODE, ForwardMode.EXTEND) and not self._has_encoder:
            return SharedReadEnds.PRE_REPLAY
        ends: SharedReadEnds = super().shared_read_ends(fm)
        return ends

    # -- drafts -------------------------------------------------------------------------------

    @property
    def verify_mask(self) -> VerifyMask | None:
        """Where SGLang writes which draft follows which. Nobody reads it here; without one it would
        write a mask of all that each draft reads."""
        if self._verify_mask is None and self.pool.manager.tail_tokens:
            from sglang.srt.layers.attention.verify_mask import VerifyMask
            from sglang.srt.speculative.eagle_utils import TreeMaskMode

            # A tail is at least what a step drafts.
            cells = self.max_batch * self.pool.manager.tail_tokens**2
            buffer = torch.zeros(cells, dtype=torch.bool, device=self.device)
            self._verify_mask = VerifyMask(
                buffer, TreeMaskMode.QLEN_ONLY, self.max_batch, is_read=False
            )
        return self._verify_mask

    # -- once a batch -------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        self.pool.poison_freed()
        self._step = None
        if not forward_batch.forward_mode.is_idle():
            self._begin(forward_batch, in_graph=False)

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ) -> None:
        mode = forward_batch.forward_mode
        if not (mode.is_decode() or mode.is_target_verify()):
            raise NotImplementedError(f"CUDA graphs of {mode.name} batches under Jenga")
        self.pool.poison_freed()
        self._begin(forward_batch, in_graph=True)

    def _begin(self, forward_batch: ForwardBatch, in_graph: bool) -> None:
        batch = forward_batch.batch_size
        is_decode = bool(forward_batch.forward_mode.is_decode())
        kv_lens, q_lens = self._lengths(forward_batch, batch)
        num_tokens = int(q_lens.sum())
        images: Sequence[tuple[Range, ...]] = ()
        if is_decode:
            rows = [Rows.whole(kv_lens, q_lens)] * (1 + len(self._chunks))
        else:
            rows = [self.rows(kv_lens, q_lens)]
            rows += [self._chunk_rows(kv_lens, q_lens, chunk, in_graph) for chunk in self._chunks]
            starts, stops = (kv_lens - q_lens).tolist(), kv_lens.tolist()
            images = images_of_batch(self.pool.whole_images, forward_batch, starts, stops)
        encoder = None
        if self._has_encoder:
            lengths = encoder_lengths(forward_batch, batch)
            rows.append(Rows.encoder(lengths, q_lens))
            encoder = self._encoder_inputs(forward_batch, lengths, is_decode)
        graph_or_eager = self._graph if in_graph else self._eager
        tables = present(graph_or_eager, "init_cuda_graph_state has not run")
        steps = tables.build(
            rows,
            forward_batch.req_pool_indices[:batch],
            self._locs(forward_batch, batch, num_tokens),
            num_tokens,
            encoder,
        )
        groups = dict(zip(self.groups, steps, strict=True))
        self._step = Step(is_decode, in_graph, num_tokens, groups, images)
        self.begin(self._step)

    def _lengths(
        self, forward_batch: ForwardBatch, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How many tokens each request has with those that are computed now, and how many those
        are, (batch,) each. Of drafts that are verified, and while a draft model makes them, SGLang
        gives the lengths without them."""
        lengths = host_lengths(forward_batch.seq_lens_cpu, forward_batch.seq_lens)[:batch]
        if forward_batch.forward_mode.is_decode():
            return lengths + self.drafted, torch.ones_like(lengths)
        if forward_batch.forward_mode.is_target_verify():
            new = torch.full_like(lengths, forward_batch.spec_info.draft_token_num)
            return lengths + new, new
        new = host_lengths(forward_batch.extend_seq_lens_cpu, forward_batch.extend_seq_lens)
        return lengths, new[:batch]

    def _locs(
        self, forward_batch: ForwardBatch, batch: int, num_tokens: int
    ) -> torch.Tensor | None:
        """(tokens,) virtual tokens that are written. A draft model's steps are given those of all
        steps, one request's after the other's."""
        locs = forward_batch.out_cache_loc
        if locs is None or not self.drafted:
            return None if locs is None else locs[:num_tokens]
        return locs.view(batch, -1)[:, self.drafted - 1]

    def _chunk_rows(
        self, kv_lens: torch.Tensor, q_lens: torch.Tensor, chunk_tokens: int, in_graph: bool
    ) -> Rows:
        """`chunk_rows`, as many in a graph whatever the lengths."""
        rows = self.chunk_rows(kv_lens, q_lens, chunk_tokens)
        if not in_graph:
            return rows
        captured = present(self._captured, "init_cuda_graph_state has not run")
        return rows.filled_up(len(kv_lens) * most_parts(captured.queries, chunk_tokens))

    def _encoder_inputs(
        self, forward_batch: ForwardBatch, lengths: torch.Tensor, is_decode: bool
    ) -> EncoderInputs:
        pages = (lengths + self.page_size - 1) // self.page_size
        return EncoderInputs(pages, None if is_decode else new_locs(forward_batch, self.page_size))

    # -- once a layer -------------------------------------------------------------------------

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
        q_rope: torch.Tensor | None = None,
        k_rope: torch.Tensor | None = None,
        **unknown: Any,
    ) -> torch.Tensor:
        """SGLang's DeepSeek layers give some backends queries and latent rows in two parts."""
        if given := [name for name, value in unknown.items() if value is not None]:
            raise NotImplementedError(f"--attention-backend {self.name} under Jenga: {given}")
        step = present(self._step, "init_forward_metadata has not run for this batch")
        q = joined(q, q_rope, layer.tp_q_head_num, layer)
        k = k if k is None else joined(k, k_rope, layer.tp_k_head_num, layer)
        if k is not None and v is not None:
            k = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)
            v = v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)
            if save_kv_cache:
                self._write(k, v, layer, step)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = output_of(forward_batch, q, layer)
        real = step.num_tokens
        # Kernels fill the rows of requests; what pads the batch must be numbers too.
        out[real:].zero_()
        place = self.pool.place[layer.layer_id]
        of_group = step.groups[place.group]
        table = self.table_of(place)
        call = Call(layer, q[:real], k, v, sinks, out[:real], place, of_group, table)
        self.attend(call, step)
        return out.view(len(out), -1)

    forward_decode = forward_extend

    def _write(self, k: torch.Tensor, v: torch.Tensor, layer: RadixAttention, step: Step) -> None:
        place = self.pool.place[layer.layer_id]
        if self.pool.layouts[place.group].is_latent:
            v = v[..., :0]
        slots = self.write_slots(step, place)[: len(k)]
        # Behind the step's tokens is padding: data-parallel attention gives ranks equal shapes.
        k, v = k[: len(slots)], v[: len(slots)]
        # Rows of fp8 are stored as they are.
        key = (layer.layer_id, k.dtype in FP8_DTYPES)
        writer = self._writers.get(key)
        if writer is None:
            caches = self.cache(layer.layer_id)
            writer = self._writers[key] = KvWriter(*caches, scales=self._scales(k, layer))
        writer.write(k, v, slots)

    def write_slots(self, step: Step, place: LayerPlace) -> torch.Tensor:
        """(tokens,) int64: where the stripe's layers keep the step's tokens; -1 for nowhere."""
        return step.groups[place.group].tables.slots[self.table_of(place)]

    def _scales(self, k: torch.Tensor, layer: RadixAttention) -> Fp8Scales | None:
        """Made while a graph is warmed up: it cannot hold copies from the host."""
        if self.kv_dtype(layer) not in FP8_DTYPES or k.dtype in FP8_DTYPES:
            return None
        return Fp8Scales(*(self._on_device(value) for value in fp8_scales(layer)))

    def _on_device(self, value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float32, device=self.device)

    def descales(self, layer: RadixAttention) -> tuple[float, float]:
        """What K and V in the layer's pages are multiplied with."""
        layout = self._layout(layer)
        if layout.dtype not in FP8_DTYPES:
            return 1.0, 1.0
        k_scale, v_scale = fp8_scales(layer)
        return k_scale, k_scale if layout.is_latent else v_scale

    def kv_dtype(self, layer: RadixAttention) -> torch.dtype:
        """The dtype of the layer's rows in the pool; groups may differ."""
        return self._layout(layer).dtype

    def _layout(self, layer: RadixAttention) -> GroupLayout:
        return self.pool.layouts[self.pool.place[layer.layer_id].group]


def joined(
    first: torch.Tensor, second: torch.Tensor | None, heads: int, layer: RadixAttention
) -> torch.Tensor:
    """(tokens, heads, D) of queries or latent rows whose second part is given apart; any others as
    they are."""
    if second is None:
        return first
    dims = (layer.v_head_dim, layer.qk_head_dim - layer.v_head_dim)
    parts = (x.view(-1, heads, dim) for x, dim in zip((first, second), dims, strict=True))
    return torch.cat([*parts], -1)


def most_parts(queries: int, chunk_tokens: int) -> int:
    """Into how many chunks that many tokens of a request can reach."""
    return 1 + -(-(queries - 1) // chunk_tokens)


def output_of(forward_batch: ForwardBatch, q: torch.Tensor, layer: RadixAttention) -> torch.Tensor:
    """(tokens, Hq, Dv) of q's dtype, not filled: SGLang's own where it has one, which spares a
    copy."""
    shape = (len(q), layer.tp_q_head_num, layer.v_head_dim)
    given = getattr(forward_batch, "_attn_output", None)
    if given is None or given.dtype != q.dtype or given.numel() != math.prod(shape):
        return q.new_empty(shape)
    out: torch.Tensor = given.view(shape) if given.is_contiguous() else q.new_empty(shape)
    return out


def check_attention(layer: RadixAttention) -> None:
    """Raise ``ValueError`` unless the layer attends as decoders do."""
    if layer.attn_type != AttentionType.DECODER:
        raise ValueError(
            f"layer {layer.layer_id} has {layer.attn_type.value} attention, its kernels have "
            "causal and cross-attention"
        )
    if layer.pos_encoding_mode != "NONE" or layer.logit_capping_method != "tanh":
        raise ValueError(
            f"layer {layer.layer_id}: positions {layer.pos_encoding_mode} and logit cap "
            f"{layer.logit_capping_method} inside the kernel"
        )


def fp8_scales(layer: RadixAttention) -> tuple[float, float]:
    """What the model's checkpoint wants K and V divided by before they become fp8."""
    if layer.k_scale_float is None or layer.v_scale_float is None:
        return 1.0, 1.0
    return layer.k_scale_float, layer.v_scale_float


def encoder_lengths(forward_batch: ForwardBatch, batch: int) -> torch.Tensor:
    """(batch,) int32 on the host: tokens that encoders made in front of each text. SGLang keeps
    those of requests on the host; what pads a CUDA graph's batch has none."""
    known = getattr(forward_batch, "encoder_lens_cpu", None)
    lengths = host_lengths(known, forward_batch.encoder_lens)[:batch]
    return torch.nn.functional.pad(lengths, (0, batch - len(lengths)))


def host_lengths(host: Any, device: torch.Tensor) -> torch.Tensor:
    """(B,) int32 on the host, from the host's copy where SGLang kept one."""
    source = device if host is None else host
    if not isinstance(source, torch.Tensor):
        source = torch.tensor(source)
    return source.to("cpu", torch.int32)
