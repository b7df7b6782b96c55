"""What the page tables of captured decodes take on the device, before there is a pool.

A graph reads its tables where they were when it was captured: they have room for as many requests
as the largest graph, each as long as any may be. With one entry per token and several stripes that
is more than SGLang's own tables, and comes out of the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from sglang.srt.runtime_context import attention_backends, get_exec

from flashinfer_ext.trim import max_entries
from jenga_sglang import flags
from jenga_sglang.adapter.attention.step_tables import trim_of
from jenga_sglang.core.cut.geometry import GroupGeometry

ENTRY_BYTES = torch.int64.itemsize


def captured_requests(max_requests: int) -> int:
    """Requests of the largest decode that is captured with tables of tokens; 0 without any."""
    if flags.TRITON_BACKEND not in attention_backends():
        return 0
    decode: Any = get_exec().graph.cuda_graph_config.decode
    sizes = decode.bs or [decode.max_bs or max_requests]
    return 0 if decode.backend == "disabled" else min(max(sizes), max_requests)


def token_table_excess_bytes(cuts: Sequence[GroupGeometry], max_batch: int, max_length: int) -> int:
    """Bytes of tables with one entry per token, over SGLang's table of one entry per token.

    Groups that the backend refuses when it is built do not count.
    """
    entries = 0
    for cut in cuts:
        with suppress(ValueError):
            trim = trim_of(cut.spec.dependency, entry_tokens=1)
            entries += cut.stripes * max_entries(trim, max_length, max_q_tokens=1)
    return max(0, entries - max_length) * max_batch * ENTRY_BYTES
