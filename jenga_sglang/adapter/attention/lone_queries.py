"""Attention in plain torch whose results have the same bits whatever a request is computed beside:
`--enable-deterministic-inference` on a CPU.

Every query is computed by itself, over the tokens that it reads and no others. What is computed
then has the same shapes in a prompt, in a chunk of one, behind a hit and in a decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jenga_sglang.adapter.attention.torch_backend import BatchPlan, JengaTorchBackend, Row, attend
from jenga_sglang.core.ranges import Range

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass(frozen=True)
class LoneRow:
    """One request of a batch. ``pages`` (n,) int64 small pages; ``queries`` are its new tokens, by
    their number in the batch, and what each reads of the tokens in the pages."""

    pages: torch.Tensor
    queries: tuple[tuple[int, tuple[Range, ...]], ...]


class LoneQueries(JengaTorchBackend):
    """`--attention-backend jenga_torch` with `--enable-deterministic-inference`."""

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._rows: dict[tuple[int, int], list[LoneRow]] = {}

    def _attend(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layer: RadixAttention,
        plan: BatchPlan,
        sinks: torch.Tensor | None,
    ) -> None:
        place = self.pool.place[layer.layer_id]
        key = (place.group, place.stripe)
        if key not in self._rows:
            self._rows[key] = self._lone_rows(plan.text.rows, key)
        k_pages, v_pages = self.pool.get_kv_buffer(layer.layer_id)
        for row in self._rows[key]:
            k = k_pages.index_select(0, row.pages).flatten(0, 1).to(q.dtype)
            v = v_pages.index_select(0, row.pages).flatten(0, 1).to(q.dtype)
            for number, read in row.queries:
                attended = attend(
                    # Copies begin where torch begins every tensor: where an operand begins may
                    # decide how its sums are made.
                    q[number].clone()[None, :, None],
                    _of(k, read),
                    _of(v, read),
                    torch.ones(1, sum(r.size for r in read), dtype=torch.bool, device=q.device),
                    scale=layer.scaling,
                    logit_cap=layer.logit_cap,
                    sinks=sinks,
                )
                out[number] = attended[0, :, 0]

    def _lone_rows(self, rows: Sequence[Row], key: tuple[int, int]) -> list[LoneRow]:
        dependency = self.pool.manager.dependencies[key[0]]
        lone, number = [], 0
        for row in rows:
            reads = [dependency.visible(position) for position in range(row.start, row.stop)]
            page = min(read[0].start for read in reads) // self.page_size
            last = -(-max(read[-1].stop for read in reads) // self.page_size)
            pages = self._to_device(self.pool.small_pages(*key, row.virtual[page:last]))
            base = page * self.page_size
            queries = [
                (number + n, tuple(Range(r.start - base, r.stop - base) for r in read))
                for n, read in enumerate(reads)
            ]
            lone.append(LoneRow(pages, tuple(queries)))
            number += len(reads)
        return lone


def _of(tokens: torch.Tensor, read: Sequence[Range]) -> torch.Tensor:
    """Of K or V of ``tokens`` (tokens, heads, D) what is read, as (1, heads, read, D)."""
    return torch.cat([tokens[r.start : r.stop] for r in read]).transpose(0, 1)[None]
