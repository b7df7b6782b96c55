"""SGLang's Triton kernels whose results have the same bits whatever a request is computed beside:
`--enable-deterministic-inference`.

A decode's history is cut into pieces by its length alone. A prompt's kernel reads cached and new
tokens from one table, in tiles that begin at multiples of a fixed number of tokens in the text. A
window's table begins where the first query's window does: it is filled up, in front, with copies
of its first token, which the kernel's mask hides. These are SGLang's own means under that flag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.kernels.ops.attention.extend_attention import (
    align_window_kv_to_tiles,
    extend_attention_fwd_unified,
)
from sglang.srt.utils import get_int_env_var

from jenga_sglang.adapter.attention.device_backend import Call, Step
from jenga_sglang.adapter.attention.step_tables import Rows
from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend
from jenga_sglang.adapter.staged import to_device

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

# As SGLang's own backend has them.
PIECE_VARIABLE = "SGLANG_TRITON_DECODE_SPLIT_TILE_SIZE"
PIECE_TOKENS = 256
TILE_TOKENS = 128  # a multiple of what the kernel reads at a time, on any GPU


@dataclass(frozen=True)
class Tiles:
    """What the queries of a batch's rows read: ``indices`` of tokens, a row's from ``indptr``
    (rows + 1,) on, of which ``before`` (rows,) are not new; ``firsts`` (rows,) is where in the
    text they begin. int32, but for the indices."""

    indptr: torch.Tensor
    indices: torch.Tensor
    before: torch.Tensor
    firsts: torch.Tensor


class FixedTiles(JengaTritonBackend):
    """`--attention-backend triton` with `--enable-deterministic-inference`."""

    def __init__(self, runner: ModelRunner, drafted: int = 0) -> None:
        self._piece_tokens = get_int_env_var(PIECE_VARIABLE, PIECE_TOKENS)
        super().__init__(runner, drafted)
        self._tiles: dict[tuple[int, int], Tiles] = {}

    def _most_splits(self, runner: ModelRunner) -> int:
        longest = runner.model_config.context_len
        return max(1, -(-longest // self._piece_tokens))

    def _count_splits(self, step: Step) -> None:
        for group in self.groups:
            lengths = step.groups[group].tables.kv_lens
            pieces = (lengths + self._piece_tokens - 1) // self._piece_tokens
            if step.in_graph:
                pieces = self._graph_splits[group][: len(pieces)].copy_(pieces)
            self._splits[group] = pieces

    def rows(self, kv_lens: torch.Tensor, q_lens: torch.Tensor) -> Rows:
        return Rows.whole(kv_lens, q_lens)

    def chunk_rows(self, kv_lens: torch.Tensor, q_lens: torch.Tensor, chunk_tokens: int) -> Rows:
        return Rows.parts(kv_lens, q_lens, chunk_tokens)

    def begin(self, step: Step) -> None:
        super().begin(step)
        self._tiles = {}

    def _tiles_of(self, step: Step, group: int, table: int) -> Tiles:
        """Made once a step, for all layers that read the table."""
        if (group, table) not in self._tiles:
            self._tiles[group, table] = self._new_tiles(step, group, table)
        return self._tiles[group, table]

    def _new_tiles(self, step: Step, group: int, table: int) -> Tiles:
        of_group = step.groups[group]
        firsts = of_group.rows.kv_lens - of_group.counts.kv_lens_cpu
        before = of_group.counts.kv_lens_cpu - of_group.rows.queries
        numbers = torch.stack((firsts, before)).to(torch.int32)
        firsts, before = to_device(numbers, self.device).unbind()
        tables = of_group.tables
        if self.trim(group).window_left < 0:
            return Tiles(tables.indptr, tables.indices[table], before, firsts)
        indptr, indices = align_window_kv_to_tiles(
            tables.indptr, tables.indices[table], firsts, len(firsts), TILE_TOKENS
        )
        filled = firsts % TILE_TOKENS
        return Tiles(indptr, indices, before + filled, firsts - filled)

    def _extend(self, call: Call, step: Step) -> None:
        layer, group = call.layer, call.place.group
        tiles = self._tiles_of(step, group, call.table)
        offsets, longest = self._q_offsets[group]
        extend_attention_fwd_unified(
            call.q.contiguous(),
            call.out,
            *self._rows[layer.layer_id],
            *self.descales(layer),
            offsets,
            tiles.indptr,
            tiles.indices,
            tiles.before,
            longest,
            sm_scale=layer.scaling,
            logit_cap=layer.logit_cap,
            sliding_window_size=self.trim(group).window_left,
            sinks=call.sinks,
            window_start_pos=tiles.firsts,
            xai_temperature_len=layer.xai_temperature_len,
        )
