"""How a step of recurrent layers is cut: which tokens of which requests one call computes.

A kernel takes a request's state from the start of its new tokens to their end. Where a snapshot
is due in between, the step is cut: every round computes the tokens up to each request's next
snapshot, and what has got there is copied out before the next round goes on::

    request a   [ . . . . . . | . . ]     round 0, copy, round 1
    request b   [ . . . ]                 round 0
    request c   [ . . | . . . . | . ]     round 0, copy, round 1, copy, round 2

Drafts that are verified are one round, on copies of the states: of a tree, every path from its root
to a leaf is a piece of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter.attention.drafts import Tree
from jenga_sglang.core.running import Running, StateCopy

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

Places = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens from ``start`` on of request ``row`` of a batch; ``places`` are those of each of them
    among the batch's new tokens. ``saves`` are copied when they are computed."""

    row: int
    start: int
    places: Places
    saves: tuple[StateCopy, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + len(self.places)


@dataclasses.dataclass
class Round:
    """Pieces that one call computes. ``tokens`` (n,) are their places in the batch, None for all;
    ``working[stripe]`` (pieces,) their states, or those that they begin with a copy of;
    ``saved[stripe]`` pairs of source and target. Where a graph verifies, every request has so many
    ``drafts``, which are computed one after the other."""

    batch: ForwardBatch
    tokens: torch.Tensor | None
    working: list[torch.Tensor]
    saved: list[tuple[torch.Tensor, torch.Tensor]]
    on_copies: bool = False
    drafts: int = 0
    metadata: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def pick(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The part of a tensor over the batch's new tokens, along ``dim``, that is computed now."""
        return tensor if self.tokens is None else tensor.index_select(dim, self.tokens)

    def one_by_one(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """(requests, …) of each draft, of a tensor (requests · drafts, …)."""
        return [tensor[draft :: self.drafts].contiguous() for draft in range(self.drafts)]

    def together(self, results: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        """The reverse, with the requests along ``dim``."""
        return torch.stack(results, dim + 1).flatten(dim, dim + 1)


def cut(
    all_running: Sequence[Running], starts: Sequence[int], all_places: Sequence[Places]
) -> list[list[Piece]]:
    """The rounds of a step, as pieces. Takes the snapshots of the step from the requests."""
    rounds: list[list[Piece]] = []
    for row, (running, start, places) in enumerate(
        zip(all_running, starts, all_places, strict=True)
    ):
        first, length = start, start + len(places)
        all_saves = running.take_saves()
        for number, stop in enumerate(sorted({stop for stop, _ in all_saves} | {length})):
            saves = tuple(save for at, save in all_saves if at == stop)
            if number == len(rounds):
                rounds.append([])
            rounds[number].append(Piece(row, start, places[start - first : stop - first], saves))
            start = stop
    return rounds


def one_after_the_other(counts: Sequence[int]) -> list[Places]:
    """The places of the new tokens of requests that have so many of them."""
    ends = np.cumsum(counts)
    return [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]


def of_drafts(
    lengths: Sequence[int], all_places: Sequence[Places], trees: Sequence[Tree | None]
) -> list[Piece]:
    """Drafts behind ``lengths`` tokens of each request."""
    return [
        Piece(row, length, places[path])
        for row, (length, places, tree) in enumerate(zip(lengths, all_places, trees, strict=True))
        for path in ([np.arange(len(places))] if tree is None else tree.paths())
    ]


def places_of(pieces: Sequence[Piece]) -> Places:
    """Where the pieces' tokens are among the batch's new tokens."""
    return np.concatenate([piece.places for piece in pieces])


def order_of(places: Places) -> Places | None:
    """Which of the tokens at ``places`` is the first, the second, … of the batch; any of those that
    are equal. None where they are in order."""
    order = np.unique(places, return_index=True)[1]
    return None if len(order) == len(places) and (np.diff(order) == 1).all() else order


def one_token_each(batch: ForwardBatch) -> ForwardBatch:
    """A batch that is verified as if it were one of decodes."""
    part = copy.copy(batch)
    part.forward_mode, part.spec_info = ForwardMode.DECODE, None
    return part


def part_of(batch: ForwardBatch, pieces: Sequence[Piece]) -> ForwardBatch:
    """The batch as if it were one of prompts and had only these pieces: what linear-attention
    backends read."""
    part, device = copy.copy(batch), batch.seq_lens.device
    rows = torch.tensor([p.row for p in pieces], device=device)
    starts = torch.tensor([p.start for p in pieces], dtype=torch.int64)
    stops = torch.tensor([p.stop for p in pieces], dtype=torch.int64)
    sizes = stops - starts
    part.batch_size = len(pieces)
    part.req_pool_indices = batch.req_pool_indices[rows]
    part.seq_lens_cpu = stops
    part.seq_lens = stops.to(batch.seq_lens)
    part.extend_num_tokens = int(sizes.sum())
    part.extend_seq_lens_cpu = sizes.tolist()
    part.extend_prefix_lens_cpu = starts.tolist()
    # As SGLang has them, whatever it asks for.
    part.extend_seq_lens = sizes.to(device, torch.int32)
    part.extend_prefix_lens = starts.to(device, torch.int32)
    part.extend_start_loc = (sizes.cumsum(0) - sizes).to(device, torch.int32)
    if batch.forward_mode.is_target_verify():
        part.forward_mode, part.spec_info = ForwardMode.EXTEND, None
    return part
