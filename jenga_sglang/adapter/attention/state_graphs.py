"""Decodes of recurrent layers in CUDA graphs, and steps that verify drafts.

A graph reads where a request's state is from buffers that SGLang's own backends fill before each
replay. Here layers of different stripes keep the states of one request in different small pages, so
each stripe has buffers of its own. A decode adds one token, so a snapshot that is due is the state
at its end: it is copied when the replay is on its way, behind it in stream order.

A graph that verifies takes copies of the states, from where buffers say that they are, and decodes
a request's drafts on its copy, one after the other. What goes into a layer it leaves in a buffer
that graphs of all sizes share: whatever is accepted is computed from there once more, outside.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter.staged import to_device
from jenga_sglang.adapter.states import (
    JengaReqToTokenPool,
    StateViews,
    copy_pages,
    working_pages,
)
from jenga_sglang.core.books.corrupt import agree, present

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from jenga_sglang.adapter.kv_pool import JengaKVPool
    from jenga_sglang.core.ids import Ids
    from jenga_sglang.core.running import Running, StateCopy

# No state: kernels skip what pads a batch. SGLang's own name for it is `PAD_SLOT_ID`.
NO_STATE = -1
# Lists that SGLang's backends append a buffer to for every batch size that may be captured.
LISTS = (
    "state_indices_list",
    "query_start_loc_list",
    "retrieve_next_token_list",
    "retrieve_next_sibling_list",
    "retrieve_parent_token_list",
)
# What those backends keep of the current step.
STEP_FIELDS = (
    "forward_metadata",
    "_has_initial_state",
    "_slot_ids_cpu",
    "_has_prefix_cpu",
    "_cache_indices",
)
# The buffers that differ by stripe.
OF_STRIPE = ("state_indices_list", "_cache_indices_buf")


class StateGraphs:
    """Mixed into `StateRounds`: what a replay of a captured decode needs of it."""

    pool: JengaKVPool
    rows: JengaReqToTokenPool
    states: StateViews
    device: torch.device

    @property
    @abstractmethod
    def _table(self) -> Ids:
        """Small pages of the states, by slot and stripe."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._buffers: list[dict[str, Any]] = []
        self._replayed: list[Running] | None = None
        self._loaded: ForwardBatch | None = None
        self._working: torch.Tensor | None = None
        self._kept: dict[int, list[torch.Tensor]] = {}
        self._owed: list[StateCopy] = []

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        self._working = torch.zeros(
            (self.states.num_stripes, max_bs), dtype=torch.int64, device=self.device
        )
        for _ in range(self.states.num_stripes):
            for name in LISTS:
                setattr(self, name, [])
            if hasattr(self, "_cache_indices_buf"):
                self._cache_indices_buf = None
            super().init_cuda_graph_state(max_bs, max_num_tokens)  # type: ignore[misc]
            self._buffers.append({n: getattr(self, n) for n in OF_STRIPE if hasattr(self, n)})

    def before_replay(self, batch: ForwardBatch) -> None:
        """Say whose states the next metadata is for: SGLang hands backends the rows on the device
        only."""
        rows = batch.req_pool_indices_cpu
        given = (batch.req_pool_indices if rows is None else rows).tolist()
        known = self.pool.running_of_row
        self._replayed = [known[row] for row in given if row in known]
        if self._replayed:  # otherwise a warm-up
            agree("requests of the batch with pages", len(self._replayed), len(given))
        self._loaded = batch

    def after_replay(self) -> None:
        """Copy the snapshots that the step leaves."""
        owed, self._owed = self._owed, []
        self._copy(owed)

    def _copy(self, copies: list[StateCopy]) -> None:
        if copies:
            for source, target in zip(*copy_pages(copies), strict=True):
                pairs = (to_device(np.ascontiguousarray(p), self.device) for p in (source, target))
                self.states.copy_pages(*pairs)

    def shared_read_ends(self, fm: ForwardMode) -> SharedReadEnds:
        """A replay finds states by indices of the backend's own, which are written before it."""
        if fm == ForwardMode.DECODE:
            return SharedReadEnds.PRE_REPLAY
        ends: SharedReadEnds = super().shared_read_ends(fm)  # type: ignore[misc]
        return ends

    def take_replayed(self, in_capture: bool) -> list[Running]:
        """Whose states are read next; nobody's while a graph is captured. States that a request
        begins with are copied."""
        all_running: list[Running] = []
        if not in_capture:
            all_running = present(self._replayed, "nobody said whose states are replayed")
        self._replayed = None
        self._copy([start for running in all_running for start in running.take_starts()])
        return all_running

    def decode_metadata(
        self, batch: ForwardBatch, all_running: list[Running], in_capture: bool
    ) -> list[dict[str, Any]]:
        """Of each stripe, SGLang's own metadata over buffers that stay where they are."""
        self._owed = [save for running in all_running for _, save in running.take_saves()]
        pages = working_pages(all_running, self._table) if all_running else None
        return self._metadata(batch, pages, in_capture)

    def verify_metadata(
        self, batch: ForwardBatch, all_running: list[Running], in_capture: bool
    ) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
        """Of each stripe, (requests,) small pages that a graph copies states from, and metadata of
        as many copies."""
        working = present(self._working, "init_cuda_graph_state has not run")
        pages = torch.zeros((len(working), batch.batch_size), dtype=torch.int64)
        copies = None
        if count := len(all_running):
            pages[:, :count] = torch.from_numpy(working_pages(all_running, self._table))
            copies = np.tile(np.arange(count), (len(working), 1))
        working[:, : batch.batch_size] = to_device(pages, self.device)
        metadata = self._metadata(batch, copies, in_capture)
        return [row[: batch.batch_size] for row in working], metadata

    def _metadata(
        self, batch: ForwardBatch, known: Ids | None, in_capture: bool
    ) -> list[dict[str, Any]]:
        index = torch.full((self.states.num_stripes, batch.batch_size), NO_STATE, dtype=torch.int32)
        if known is not None:
            index[:, : known.shape[1]] = torch.from_numpy(known)
        on_device = to_device(index, self.device)
        return [self._of_stripe(*of, batch, in_capture) for of in enumerate(on_device)]

    def keep(
        self, layer_id: int, tensors: Sequence[torch.Tensor], token_dim: int
    ) -> list[torch.Tensor]:
        """The same values, along with the tokens' dimension, where they stay until the next replay.
        Graphs of all sizes share the buffers, for only one's values are waited for; the largest is
        captured first."""
        kept = self._kept.get(layer_id)
        if kept is None or kept[0].shape[token_dim] < tensors[0].shape[token_dim]:
            kept = self._kept[layer_id] = [torch.empty_like(tensor) for tensor in tensors]
        views = [
            buffer.narrow(token_dim, 0, tensor.shape[token_dim])
            for buffer, tensor in zip(kept, tensors, strict=True)
        ]
        for view, tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)
        return views

    def _of_stripe(
        self, stripe: int, index: torch.Tensor, batch: ForwardBatch, in_capture: bool
    ) -> dict[str, Any]:
        for name, value in self._buffers[stripe].items():
            setattr(self, name, value)
        self.rows.state_index = index
        super().init_forward_metadata_out_graph(batch, in_capture)  # type: ignore[misc]
        return self.step_fields()

    def step_fields(self) -> dict[str, Any]:
        """What SGLang's backend keeps of the current step."""
        return {name: getattr(self, name) for name in STEP_FIELDS if hasattr(self, name)}

    def leave_buffers(self) -> None:
        """For a step that no graph replays, with arrays of its own: a short convolution's backend
        would put those of every stripe into one buffer."""
        if hasattr(self, "_cache_indices_buf"):
            self._cache_indices_buf = None


def host_values(host: Any, device: torch.Tensor) -> list[int]:
    """Plain integers, from the host's copy where SGLang kept one."""
    values = device if host is None else host
    return [int(v) for v in (values.tolist() if isinstance(values, torch.Tensor) else values)]
