"""Which part of a request's history a group's table names, computed on the host.

The queries of a request are its last `q_len` tokens. The first of them stands at position
`kv_len - q_len` and sees no token before `first_token`; tokens before it need no table entry.
The device kernel in `tables.py` evaluates the same expressions; planning from these counts
therefore needs no copy from the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Trim:
    """Dependency of one group as table parameters.

    `window_left`: a query sees itself and that many tokens before it; -1 for no window.
    `chunk_tokens`: a query sees its own chunk only; 0 for no chunks.
    `entry_tokens`: tokens that one table entry stands for: the page size, or 1 in the row view.
    """

    entry_tokens: int
    window_left: int = -1
    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        if self.entry_tokens < 1:
            raise ValueError(f"entry_tokens: expected >= 1, got {self.entry_tokens}")
        if self.window_left < -1:
            raise ValueError(f"window_left: expected >= -1, got {self.window_left}")
        if self.chunk_tokens < 0:
            raise ValueError(f"chunk_tokens: expected >= 0, got {self.chunk_tokens}")
        # A chunk that starts inside an entry would need a mask of its own for every request.
        if self.chunk_tokens % self.entry_tokens:
            raise ValueError(
                f"chunk_tokens: expected a multiple of entry_tokens {self.entry_tokens}, "
                f"got {self.chunk_tokens}"
            )


@dataclass(frozen=True)
class HostCounts:
    """CSR geometry of one group for one batch, all int32 on the host.

    indptr_cpu: (B + 1,) entries before each request.
    kv_lens_cpu: (B,) tokens from the start of the first entry to the end of the request.
    last_page_len_cpu: (B,) tokens in the last entry, 1 when there is none.
    first_entries_cpu: (B,) entries that were cut off the front.
    """

    indptr_cpu: torch.Tensor
    kv_lens_cpu: torch.Tensor
    last_page_len_cpu: torch.Tensor
    first_entries_cpu: torch.Tensor

    @property
    def num_entries(self) -> int:
        return int(self.indptr_cpu[-1])

    @property
    def most_entries(self) -> int:
        """Entries of the request that has most."""
        return int(np.diff(self.indptr_cpu.numpy()).max(initial=0))


def first_tokens(trim: Trim, kv_lens: Ints, q_lens: Ints) -> Ints:
    """Position of the first token that the first query of each request sees.

    kv_lens, q_lens: (B,) integers. Returns (B,), of kv_lens' dtype.
    """
    first_query = np.maximum(kv_lens - np.maximum(q_lens, 1), 0)
    start = np.zeros_like(kv_lens)
    if trim.window_left >= 0:
        start = np.maximum(first_query - trim.window_left, 0)
    if trim.chunk_tokens > 0:
        start = np.maximum(start, first_query // trim.chunk_tokens * trim.chunk_tokens)
    return start


def host_counts(trim: Trim, kv_lens_cpu: torch.Tensor, q_lens_cpu: torch.Tensor) -> HostCounts:
    """CSR geometry of one group.

    kv_lens_cpu, q_lens_cpu: (B,) int32 or int64 on the host; q_len 0 counts as one query.
    """
    check_host_lengths(kv_lens_cpu, q_lens_cpu)
    unit = trim.entry_tokens
    # On arrays this short an operation of torch takes several times as long as one of numpy.
    kv_lens, q_lens = (x.numpy().astype(np.int32, copy=False) for x in (kv_lens_cpu, q_lens_cpu))
    first_entries = first_tokens(trim, kv_lens, q_lens) // unit
    trimmed = kv_lens - first_entries * unit
    indptr = np.zeros(len(kv_lens) + 1, np.int32)
    np.cumsum((trimmed + (unit - 1)) // unit, out=indptr[1:])
    last = np.maximum(trimmed - 1, 0) % unit + 1
    return HostCounts(*map(torch.from_numpy, (indptr, trimmed, last, first_entries)))


def max_entries(trim: Trim, max_kv_tokens: int, max_q_tokens: int) -> int:
    """Most entries that one request of at most these lengths can have."""
    unit = trim.entry_tokens
    whole = -(-max_kv_tokens // unit)
    bounds = [whole]
    if trim.window_left >= 0:
        # A span that starts at the last token of an entry touches one entry more than its length.
        span = trim.window_left + max(max_q_tokens, 1)
        bounds.append((span - 2) // unit + 2)
    if trim.chunk_tokens > 0:
        span = trim.chunk_tokens - 1 + max(max_q_tokens, 1)
        bounds.append(-(-span // unit))
    return min(bounds)


def split_at_chunks(
    kv_lens_cpu: torch.Tensor, q_lens_cpu: torch.Tensor, chunk_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut queries at chunk borders, so that each part sees one chunk and plain causality holds.

    kv_lens_cpu, q_lens_cpu: (B,) int32 or int64 on the host, q_len <= kv_len.
    Returns owner (B',), kv_lens (B',), q_lens (B',), int32: `owner` is the request a part belongs
    to; parts keep the order of their queries.
    """
    check_host_lengths(kv_lens_cpu, q_lens_cpu)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens: expected >= 1, got {chunk_tokens}")
    parts: list[tuple[int, int, int]] = []
    pairs = zip(kv_lens_cpu.tolist(), q_lens_cpu.tolist(), strict=True)
    for owner, (kv_len, q_len) in enumerate(pairs):
        position = kv_len - q_len
        while position < kv_len:
            end = min(kv_len, (position // chunk_tokens + 1) * chunk_tokens)
            parts.append((owner, end, end - position))
            position = end
    table = torch.tensor(parts, dtype=torch.int32).reshape(-1, 3)
    return table[:, 0].contiguous(), table[:, 1].contiguous(), table[:, 2].contiguous()


def check_host_lengths(kv_lens_cpu: torch.Tensor, q_lens_cpu: torch.Tensor) -> None:
    """Raise ValueError unless both are 1-D host tensors of one length."""
    for name, tensor in (("kv_lens_cpu", kv_lens_cpu), ("q_lens_cpu", q_lens_cpu)):
        if tensor.device.type != "cpu" or tensor.dim() != 1:
            raise ValueError(
                f"{name}: expected a 1-D host tensor, "
                f"got shape {tuple(tensor.shape)} on {tensor.device}"
            )
    if kv_lens_cpu.shape != q_lens_cpu.shape:
        raise ValueError(
            f"q_lens_cpu: expected shape {tuple(kv_lens_cpu.shape)}, got {tuple(q_lens_cpu.shape)}"
        )
