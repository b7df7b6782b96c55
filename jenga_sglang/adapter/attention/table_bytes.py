"""What the page tables of captured steps take on the device, before there is a pool.

A graph reads its tables where they were when it was captured: they have room for as many requests
as the largest graph, each as long as any may be. With one entry per token and several stripes that
is more than SGLang's own tables, and comes out of the same memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.runtime_context import attention_backends, get_exec, get_spec

from flashinfer_ext.trim import max_entries
from jenga_sglang import flags
from jenga_sglang.adapter.attention.step_tables import trim_of
from jenga_sglang.core.cut.geometry import GroupGeometry

ENTRY_BYTES = torch.int64.itemsize


@dataclass(frozen=True)
class Drafting:
    """``queries`` tokens of a request are verified at once. A draft model with the layers
    ``layer_ids`` makes them in ``steps`` steps, each but the last with tables of its own."""

    layer_ids: Collection[int] = ()
    queries: int = 1
    steps: int = 1

    @classmethod
    def of_server(cls, layer_ids: Collection[int]) -> Drafting:
        """As the server's flags say, with a draft model of these layers or with none."""
        spec = get_spec()
        if spec.speculative_algorithm is None:
            return cls()
        steps = spec.speculative_num_steps if layer_ids else 1
        return cls(layer_ids, spec.speculative_num_draft_tokens, steps)


def captured_requests(max_requests: int) -> int:
    """Requests of the largest decode that is captured with tables of tokens; 0 without any."""
    if flags.TRITON_BACKEND not in attention_backends():
        return 0
    decode: Any = get_exec().graph.cuda_graph_config.decode
    sizes = decode.bs or [decode.max_bs or max_requests]
    return 0 if decode.backend == "disabled" else min(max(sizes), max_requests)


def token_table_excess_bytes(
    cuts: Sequence[GroupGeometry], max_batch: int, max_length: int, drafting: Drafting | None = None
) -> int:
    """Bytes of tables with one entry per token, over SGLang's tables of one entry per token.

    Groups that the backend refuses when it is built do not count.
    """
    drafting = drafting or Drafting()
    others = drafting.steps - 1
    entries = 0
    for cut in cuts:
        with suppress(ValueError):
            trim = trim_of(cut.spec.dependency, entry_tokens=1)
            drafts = [layer in drafting.layer_ids for layer in cut.spec.layers]
            own = max_entries(trim, max_length, drafting.queries)
            entries += _stripes(cut, [not is_draft for is_draft in drafts]) * own
            entries += others * _stripes(cut, drafts) * max_entries(trim, max_length, 1)
    return max(0, entries - (1 + others) * max_length) * max_batch * ENTRY_BYTES


def _stripes(cut: GroupGeometry, layers: Sequence[bool]) -> int:
    """In how many stripes the group's layers lie that are marked, and those between them."""
    found = [i // cut.layers_per_stripe for i, is_marked in enumerate(layers) if is_marked]
    return max(found) - min(found) + 1 if found else 0
