"""SGLang's linear-attention backends on Jenga's states: one step in as many rounds as it has
snapshots (`state_rounds`). Most steps have one round and run exactly as in SGLang.

A step that verifies drafts runs on copies of the states, a layer's at a time, and leaves the states
as they were. What went into its layers is kept until it is known which drafts are accepted; those
are computed once more, as a step of their own, which moves the states on. So a request has one
state, however many drafts it has, and a snapshot where any other step would leave one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.layers.attention.hybrid_linear_attn_backend import Mamba2AttnBackend
from sglang.srt.layers.attention.linear.gdn_backend import GDNAttnBackend
from sglang.srt.layers.attention.linear.kda_backend import KDAAttnBackend
from sglang.srt.layers.attention.linear.short_conv_backend import (
    ShortConvAttnBackend,
    ShortConvMetadata,
)
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
from sglang.srt.model_executor.forward_context import get_attn_backend

from jenga_sglang import flags
from jenga_sglang.adapter.attention.drafts import trees_of
from jenga_sglang.adapter.attention.state_graphs import StateGraphs, host_values
from jenga_sglang.adapter.attention.state_rounds import (
    Piece,
    Places,
    Round,
    cut,
    of_drafts,
    one_after_the_other,
    one_token_each,
    order_of,
    part_of,
    places_of,
)
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.adapter.states import (
    JengaReqToTokenPool,
    StateViews,
    copy_pages,
    working_pages,
)
from jenga_sglang.core.books.corrupt import agree, present
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.running import Running
from jenga_sglang.refusal import refuse

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

    from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache


@dataclasses.dataclass
class Drafts:
    """Drafts that have been verified behind ``starts`` tokens of each request, until it is known
    which are accepted. ``layers[layer_id]`` computes parts of the batch once more."""

    batch: ForwardBatch
    all_running: list[Running]
    starts: list[int]
    layers: dict[int, Callable[[Round], Any]] = dataclasses.field(default_factory=dict)


class StateRounds(StateGraphs):
    """Mixed into one of SGLang's linear-attention backends: the same steps, in rounds, on the
    states of a Jenga pool."""

    pool: JengaKVPool
    rows: JengaReqToTokenPool
    states: StateViews
    group: int
    device: torch.device
    # With overlap SGLang brings the host's lengths up to date where this is so.
    needs_cpu_seq_lens = True
    _rounds: list[Round]
    _order: torch.Tensor | None  # in which results are those of the batch's tokens
    _drafts: Drafts | None
    _layer_id: int

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        self.pool = runner.token_to_kv_pool
        self.rows = runner.req_to_token_pool
        self.states = present(self.pool.states, "a pool without recurrent states")
        self.group = present(self.pool.state_group, "a pool without a group of states")
        self._rounds = []
        self._order = self._drafts = None
        # By size of the graph.
        self.captured: dict[int, dict[int, Callable[[Round], Any]]] = {}
        self._layer_id = -1

    @property
    def _table(self) -> Ids:
        # Not kept: a reset of the manager makes new tables.
        return self.pool.manager.memory.table[self.group]

    # -- once a batch -------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        # Without attention layers nobody else does.
        self.pool.poison_freed()
        self.leave_buffers()
        self._rounds, self._drafts = [], None
        if forward_batch.forward_mode.is_idle():
            return
        lengths = host_values(forward_batch.seq_lens_cpu, forward_batch.seq_lens)
        requests = host_values(forward_batch.req_pool_indices_cpu, forward_batch.req_pool_indices)
        all_running = [
            self.pool.running_of_row[row] for row in requests if row in self.pool.running_of_row
        ]
        if not all_running:
            return  # a warm-up batch: there is nobody whose state could change
        agree("requests of the batch with pages", len(all_running), len(requests))
        self._start(all_running)
        if forward_batch.forward_mode.is_target_verify():
            self._verify(Drafts(forward_batch, all_running, lengths))
            return
        if forward_batch.forward_mode.is_decode():
            starts = [length - 1 for length in lengths]
        else:
            prefixes = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_prefix_lens
            starts = host_values(*prefixes)
        counts = [length - start for length, start in zip(lengths, starts, strict=True)]
        rounds = cut(all_running, starts, one_after_the_other(counts))
        whole = len(rounds) == 1
        self._rounds = [
            self._round(forward_batch, all_running, pieces, whole=whole) for pieces in rounds
        ]
        self._order = None if whole else self._order_of([p for pieces in rounds for p in pieces])

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ) -> None:
        self.pool.poison_freed()
        self._order = self._drafts = None
        all_running = self.take_replayed(in_capture)
        if forward_batch.forward_mode.is_target_verify():
            self._verify_in_graph(forward_batch, all_running, in_capture)
            return
        metadata = self.decode_metadata(forward_batch, all_running, in_capture)
        self._rounds = [Round(forward_batch, None, [], [], metadata=metadata)]

    def _start(self, all_running: list[Running]) -> None:
        starts = [start for running in all_running for start in running.take_starts()]
        if starts:
            for source, target in zip(*copy_pages(starts), strict=True):
                self.states.copy_pages(self._to_device(source), self._to_device(target))

    def _verify(self, drafts: Drafts) -> None:
        spec = drafts.batch.spec_info
        places = one_after_the_other([spec.draft_token_num] * len(drafts.starts))
        pieces = of_drafts(drafts.starts, places, trees_of(spec, drafts.starts))
        self._rounds = [self._round(drafts.batch, drafts.all_running, pieces, on_copies=True)]
        self._order = self._order_of(pieces)
        self._drafts = drafts

    def _verify_in_graph(
        self, batch: ForwardBatch, all_running: list[Running], in_capture: bool
    ) -> None:
        part = self.as_captured(batch)
        working, metadata = self.verify_metadata(part, all_running, in_capture)
        count = batch.spec_info.draft_token_num
        self._rounds = [Round(part, None, working, [], True, count, metadata)]
        layers = self.captured.setdefault(batch.batch_size, {})
        # What is loaded for a graph is padded, and has less of SGLang's fields.
        loaded = batch if in_capture else present(self._loaded, "nobody said what is replayed")
        lengths = host_values(loaded.seq_lens_cpu, loaded.seq_lens)
        self._drafts = Drafts(loaded, all_running, lengths, layers)

    def as_captured(self, batch: ForwardBatch) -> ForwardBatch:
        """The batch as the kernels of a graph that verifies see it: one draft of each request."""
        return one_token_each(batch)

    @property
    def drafted_behind(self) -> list[int]:
        """Behind how many tokens of each request the drafts are that have just been verified."""
        return present(self._drafts, "drafts that were not verified").starts

    def accept(self, all_places: Sequence[Places]) -> None:
        """Move on the states of the requests whose drafts have just been verified, by those at
        ``all_places`` among the batch's drafts, and leave the snapshots that are due."""
        drafts, self._drafts = present(self._drafts, "drafts that were not verified"), None
        self.pool.poison_freed()
        self.leave_buffers()
        rounds = [
            self._round(drafts.batch, drafts.all_running, pieces)
            for pieces in cut(drafts.all_running, drafts.starts, all_places)
        ]
        for layer_id, compute in drafts.layers.items():
            for now in rounds:
                self._run_round(layer_id, compute, now)

    def _order_of(self, pieces: Sequence[Piece]) -> torch.Tensor | None:
        order = order_of(places_of(pieces))
        return None if order is None else self._to_device(order)

    def _round(
        self,
        batch: ForwardBatch,
        all_running: list[Running],
        pieces: list[Piece],
        *,
        whole: bool = False,
        on_copies: bool = False,
    ) -> Round:
        working = working_pages([all_running[piece.row] for piece in pieces], self._table)
        saves = [save for piece in pieces for save in piece.saves]
        saved = zip(*copy_pages(saves), strict=True) if saves else ()
        result = Round(
            batch if whole else part_of(batch, pieces),
            None if whole else self._to_device(places_of(pieces)),
            [self._to_device(pages) for pages in working],
            [(self._to_device(source), self._to_device(target)) for source, target in saved],
            on_copies,
        )
        # As SGLang's own backend sees this part of the batch, once for every stripe's indices.
        for pages in result.working:
            index = torch.arange(len(pieces), device=self.device) if on_copies else pages
            self.rows.state_index = index.to(torch.int32)
            super().init_forward_metadata(result.batch)  # type: ignore[misc]
            result.metadata.append(self.step_fields())
        return result

    def _to_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    # -- once a layer -------------------------------------------------------------------------

    def _enter(self, layer_id: int, now: Round) -> None:
        """See the round's requests only, with the states of the layer's stripe."""
        stripe = self.states.stripe[layer_id]
        for name, value in now.metadata[stripe].items():
            setattr(self, name, value)
        if now.on_copies:
            self.rows.copied = self.states.copies_of(layer_id, now.working[stripe])

    def _leave(self, layer_id: int, now: Round) -> None:
        self.rows.copied = None
        if now.saved:
            self.states.copy_layer(layer_id, *now.saved[self.states.stripe[layer_id]])

    def _run_round(self, layer_id: int, compute: Callable[[Round], Any], now: Round) -> Any:
        self._enter(layer_id, now)
        result = compute(now)
        self._leave(layer_id, now)
        return result

    def kept(
        self, layer_id: int, *tensors: torch.Tensor, token_dim: int = 0
    ) -> Sequence[torch.Tensor]:
        """What goes into a layer; in a graph that verifies, in buffers that it fills."""
        if not any(now.drafts for now in self._rounds):
            return tensors
        return self.keep(layer_id, tensors, token_dim)

    def run(
        self,
        layer_id: int,
        compute: Callable[[Round], torch.Tensor],
        empty: Callable[[], torch.Tensor],
        token_dim: int = 0,
    ) -> torch.Tensor:
        """Call ``compute`` for every round; its results are put together along ``token_dim``.
        ``empty`` makes the result of a batch without requests. Of drafts ``compute`` is kept, and
        called again for those that are accepted."""
        if not self._rounds:
            return empty()
        results = [self._run_round(layer_id, compute, now) for now in self._rounds]
        if self._drafts is not None:
            self._drafts.layers[layer_id] = compute
        joined: torch.Tensor = results[0] if len(results) == 1 else torch.cat(results, token_dim)
        return joined if self._order is None else joined.index_select(token_dim, self._order)


class JengaShortConvBackend(StateRounds, ShortConvAttnBackend):
    """Short convolutions: the model asks for a layer's metadata and calls the kernel itself."""

    _asked = False

    def as_captured(self, batch: ForwardBatch) -> ForwardBatch:
        """All drafts at once: their kernel never asks the host."""
        return batch

    def conv_state_metadata(self, layer_id: int, forward_batch: ForwardBatch) -> Any:
        if self._asked:
            raise RuntimeError(f"layer {self._layer_id} ran its convolution past Jenga's rounds")
        self._layer_id, self._asked = layer_id, True
        if not self._rounds:
            return ShortConvMetadata(self.rows.mamba2_layer_cache(layer_id), None)
        if self._drafts is None:
            self._enter(layer_id, self._rounds[0])
        return super().conv_state_metadata(layer_id, forward_batch)

    def run_convolution(
        self, kernel: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """``kernel`` as the model called it for the layer whose metadata it has just asked for:
        x is (channels, tokens) in a prefill, (requests, channels) in a decode."""
        layer_id, self._asked = self._layer_id, False
        prefill = "query_start_loc" in kwargs
        (x,) = self.kept(layer_id, x, token_dim=1)

        def compute(now: Round) -> torch.Tensor:
            if not prefill:
                return kernel(x, *args, **kwargs)
            meta = super(JengaShortConvBackend, self).conv_state_metadata(layer_id, now.batch)
            changed = {
                "query_start_loc": meta.query_start_loc,
                "cache_indices": meta.cache_indices,
                "has_initial_state": meta.has_initial_state,
                "conv_states": meta.layer_cache.conv[0],
            }
            if now.drafts:  # kernels may write over what they are given
                changed["has_initial_state"] = torch.ones_like(meta.cache_indices, dtype=torch.bool)
                return kernel(x.contiguous().clone(), *args, **kwargs | changed)
            return kernel(now.pick(x, 1), *args, **kwargs | changed)

        return self.run(layer_id, compute, lambda: x, token_dim=1 if prefill else 0)


class JengaMamba2Backend(StateRounds, Mamba2AttnBackend):
    """Mamba-2: the model calls the backend with its mixer."""

    def forward(
        self,
        mixer: Any,
        hidden_states: torch.Tensor,
        output: torch.Tensor | None,
        layer_id: int,
        forward_batch: ForwardBatch,
        mup_vector: torch.Tensor | None = None,
        use_triton_causal_conv: bool = False,
    ) -> torch.Tensor:
        def step(batch: ForwardBatch, tokens: torch.Tensor) -> torch.Tensor:
            # SGLang's compiled convolution takes contiguous states only.
            result: torch.Tensor = super(JengaMamba2Backend, self).forward(
                mixer, tokens, None, layer_id, batch, mup_vector, use_triton_causal_conv=True
            )
            return result

        (kept,) = self.kept(layer_id, hidden_states)

        def compute(now: Round) -> torch.Tensor:
            if not now.drafts:
                return step(now.batch, now.pick(kept))
            return now.together([step(now.batch, x) for x in now.one_by_one(kept)])

        result = self.run(layer_id, compute, lambda: torch.zeros_like(hidden_states))
        if output is not None:
            output[: len(result)].copy_(result)
        return result


class LinearRounds(StateRounds):
    """Linear attention: the layer calls the backend with its projections."""

    def forward_extend(
        self,
        layer: Any,
        forward_batch: ForwardBatch,
        mixed_qkv: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """mixed_qkv: (tokens, channels). a, b: (tokens, heads), or (1, tokens, …). Returns (1,
        tokens, heads, value dim)."""
        step, decode = super().forward_extend, super().forward_decode  # type: ignore[misc]
        gates, rates = (t.dim() > 2 for t in (a, b))
        kept = self.kept(layer.layer_id, mixed_qkv, a[0] if gates else a, b[0] if rates else b)

        def decode_each(now: Round) -> torch.Tensor:
            """As layers call it for decodes: rates of all tokens in one, gates by token."""
            outputs = [
                decode(layer, now.batch, x, gate, rate[None] if rates else rate)
                for x, gate, rate in zip(*map(now.one_by_one, kept), strict=True)
            ]
            return now.together(outputs, 1)

        def compute(now: Round) -> torch.Tensor:
            if now.drafts:
                return decode_each(now)
            x, gate, rate = map(now.pick, kept)
            # Room for the whole batch's output cannot take a part of it.
            given = kwargs if now.tokens is None else kwargs | {"linear_attn_output": None}
            result: torch.Tensor = step(
                layer=layer,
                forward_batch=now.batch,
                mixed_qkv=x,
                a=gate[None] if gates else gate,
                b=rate[None] if rates else rate,
                **given,
            )
            return result

        return self.run(layer.layer_id, compute, lambda: _no_output(layer, mixed_qkv), token_dim=1)

    def forward_decode(
        self, layer: Any, forward_batch: ForwardBatch, mixed_qkv: Any, **kwargs: Any
    ) -> Any:
        """A layer that leaves splitting its projections to the backend gives a pair of them, and
        gets a pair: the output, and its gate (tokens, heads, value dim)."""
        step = super().forward_decode  # type: ignore[misc]

        def compute(now: Round) -> Any:
            return step(layer=layer, forward_batch=now.batch, mixed_qkv=mixed_qkv, **kwargs)

        def empty() -> Any:
            if not isinstance(mixed_qkv, tuple):
                return _no_output(layer, mixed_qkv)
            output = _no_output(layer, mixed_qkv[0])
            return output, output[0]

        return self.run(layer.layer_id, compute, empty)


def _no_output(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
    return tokens.new_zeros(1, len(tokens), layer.num_v_heads, layer.head_v_dim)


class JengaGDNBackend(LinearRounds, GDNAttnBackend):
    """Gated delta nets. SGLang's kernels for prefills get copies of strided states from it."""


class JengaKDABackend(LinearRounds, KDAAttnBackend):
    """Kimi delta attention. SGLang's Triton kernels take states with any stride."""

    def forward_extend(
        self,
        layer: Any,
        forward_batch: ForwardBatch,
        mixed_qkv: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``a`` is (1, tokens, …) as in prompts; of drafts layers give (tokens, …), as to decode
        kernels."""
        gates = a.unsqueeze(0) if a.dim() == 2 else a
        return super().forward_extend(layer, forward_batch, mixed_qkv, gates, b, **kwargs)


BACKENDS: dict[type, type[StateRounds]] = {
    ShortConvAttnBackend: JengaShortConvBackend,
    Mamba2AttnBackend: JengaMamba2Backend,
    GDNAttnBackend: JengaGDNBackend,
    KDAAttnBackend: JengaKDABackend,
}


def refuse_graphs() -> None:
    """Raise ``SystemExit`` with one line where prompts would be captured: their rounds differ each
    time."""
    if check_cuda_graph_backend(Phase.PREFILL, Backend.DISABLED):
        return
    raise refuse(
        f"{flags.FLAG} jenga",
        "prompts of recurrent layers do not run in CUDA graphs; add "
        "--cuda-graph-backend-prefill disabled",
    )


def replace_linear_backend(hybrid: Any, runner: ModelRunner) -> None:
    """Put one of ours in the place of the linear-attention backend of SGLang's ``hybrid``.

    Raises ``SystemExit`` with one line for a backend that is not among `BACKENDS`.
    """
    theirs = hybrid.linear_attn_backend
    num_convolutions = len(runner.req_to_token_pool.mamba_pool.mamba_cache.conv)
    # A model with two convolutions a layer runs them in loops of its own.
    if type(theirs) not in BACKENDS or num_convolutions > 1:
        raise refuse(
            f"{flags.FLAG} jenga",
            f"the recurrent layers of this model run on {type(theirs).__name__} with "
            f"{num_convolutions} convolutions, which Jenga does not serve yet",
        )
    ours = BACKENDS[type(theirs)](runner)
    hybrid.attn_backend_list = [
        ours if backend is theirs else backend for backend in hybrid.attn_backend_list
    ]
    hybrid.linear_attn_backend = ours
    if hasattr(hybrid, "short_conv_backend"):
        hybrid.short_conv_backend = ours


def recurrent_backend(attn_backend: Any) -> StateRounds | None:
    """The part of a model's attention backend that runs its recurrent layers, if it is ours."""
    backend = getattr(attn_backend, "linear_attn_backend", attn_backend)
    return backend if isinstance(backend, StateRounds) else None


def convolution_backend() -> JengaShortConvBackend | None:
    """The short-convolution backend of the forward pass in progress, if it is ours."""
    backend = getattr(get_attn_backend(), "linear_attn_backend", None)
    return backend if isinstance(backend, JengaShortConvBackend) else None


def accept_drafts(
    attn_backend: Any, batch: ScheduleBatch, accept_lens: torch.Tensor, accept_index: torch.Tensor
) -> None:
    """Move on the states of the requests of ``batch`` by the drafts that each has accepted: the
    first ``accept_lens`` (requests,) of ``accept_index`` (requests, most), places in the batch."""
    backend: StateRounds = getattr(attn_backend, "linear_attn_backend", attn_backend)
    cache: JengaPrefixCache = batch.tree_cache
    counts, index = accept_lens.tolist(), accept_index.cpu().numpy().astype(np.int64)
    for req, start, count in zip(batch.reqs, backend.drafted_behind, counts, strict=True):
        # An answer may end within what is accepted: a snapshot behind its end would be nobody's.
        end = len(req.origin_input_ids) + req.sampling_params.max_new_tokens - 1
        cache.save_states(req, start, min(start + count, end))
    cache.run_copies()
    backend.accept([places[:count] for places, count in zip(index, counts, strict=True)])
