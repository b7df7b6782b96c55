"""Plain torch for every kernel of this package and for attention over its pages.

Slow and obvious on purpose: loops over requests, no trims, no plans. Tests and benchmarks compare
against these functions; nothing else calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .table_spec import BatchInputs, TableSpec

if TYPE_CHECKING:
    from .kv_write import Fp8Scales, Rope

NULL_PAGE = 0


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees; positions count from the start of the request."""

    causal: bool = True
    window_left: int = -1
    chunk_tokens: int = 0

    def visible(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """(queries, keys) bool. queries, keys: 1-D int positions, same device."""
        query, key = queries[:, None], keys[None, :]
        seen = key <= query if self.causal else torch.ones_like(key <= query)
        if self.window_left >= 0:
            seen = seen & (key >= query - self.window_left)
        if self.chunk_tokens > 0:
            seen = seen & (key // self.chunk_tokens == query // self.chunk_tokens)
        return seen


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one request.

    q: (Q, Hq, Dk), k: (K, H, Dk), v: (K, H, Dv), one float dtype; Hq is a multiple of H.
    visible: (Q, K) bool. sinks: (Hq,) logits of a key without a value.
    Returns out (Q, Hq, Dv) and the natural log-sum-exp (Q, Hq), sinks included; a query that sees
    nothing gets zeros and the sink's logit or -inf.
    """
    group = q.shape[1] // k.shape[1]
    keys = k.repeat_interleave(group, dim=1)
    values = v.repeat_interleave(group, dim=1)
    logits = torch.einsum("qhd,khd->qhk", q, keys) * scale
    if soft_cap > 0:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    logits = logits.masked_fill(~visible[:, None, :], float("-inf"))
    if sinks is not None:
        column = sinks.to(q).expand(q.shape[0], -1)[..., None]
        logits = torch.cat([logits, column], dim=-1)
    lse = logits.logsumexp(dim=-1)
    weights = (logits - lse[..., None]).exp().nan_to_num(0.0)[..., : k.shape[0]]
    return torch.einsum("qhk,khd->qhd", weights, values), lse


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    kv_lens: list[int],
    q_lens: list[int],
    scale: float,
    mask: Mask | None = None,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
    page_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a batch over pages that are not trimmed.

    q: (sum of q_lens, Hq, Dk). k_cache: (P, T, H, Dk), v_cache: (P, T, H, Dv), any strides.
    block_tables: (B, pages) int, page of each page of a request. page_mask: (B, pages) bool, False
    hides a page. Queries are the last q_len tokens of a request. Computes in `dtype`.
    Returns out (sum of q_lens, Hq, Dv) and natural log-sum-exp (sum of q_lens, Hq), both `dtype`.
    """
    mask = mask or Mask()
    tokens = k_cache.shape[1]
    outs, lses, start = [], [], 0
    for request, (kv_len, q_len) in enumerate(zip(kv_lens, q_lens, strict=True)):
        pages = block_tables[request, : -(-kv_len // tokens)].long()
        keys = k_cache[pages].flatten(0, 1)[:kv_len].to(dtype)
        values = v_cache[pages].flatten(0, 1)[:kv_len].to(dtype)
        positions = torch.arange(kv_len, device=q.device)
        # In cross-attention there may be more queries than keys.
        queries = torch.arange(kv_len - q_len, kv_len, device=q.device)
        visible = mask.visible(queries, positions)
        if page_mask is not None:
            visible = visible & page_mask[request][positions // tokens][None, :]
        rows = q[start : start + q_len].to(dtype)
        # A hidden row may hold anything, NaN too: it must not reach the sum as 0 * NaN.
        hidden = ~visible.any(dim=0)
        keys[hidden], values[hidden] = 0, 0
        out, lse = attention(rows, keys, values, visible, scale, soft_cap, sinks)
        outs.append(out)
        lses.append(lse)
        start += q_len
    return torch.cat(outs), torch.cat(lses)


def csr_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    qo_indptr: list[int],
    indptr: list[int],
    indices: torch.Tensor,
    last_page_len: list[int],
    scale: float,
    window_left: int = -1,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Causal attention by FlashInfer's conventions, which know nothing of what was trimmed.

    q: (qo_indptr[-1], Hq, Dk). k_cache, v_cache: (P, T, H, D). indices: (entries,) int.
    Positions count from the start of a request's entries. Returns (qo_indptr[-1], Hq, Dv).
    """
    tokens = k_cache.shape[1]
    outs = []
    for request, last in enumerate(last_page_len):
        pages = indices[indptr[request] : indptr[request + 1]].long()
        kv_len = (len(pages) - 1) * tokens + last
        rows = q[qo_indptr[request] : qo_indptr[request + 1]].to(dtype)
        keys, values = (c[pages].flatten(0, 1)[:kv_len].to(dtype) for c in (k_cache, v_cache))
        positions = torch.arange(kv_len, device=q.device)
        visible = Mask(True, window_left).visible(positions[kv_len - len(rows) :], positions)
        outs.append(attention(rows, keys, values, visible, scale)[0])
    return torch.cat(outs)


def rotate(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """x (tokens, H, D) with rotary embedding on its first entries, float32."""
    x = x.float()
    dim = rope.cos_sin.shape[1]
    cos, sin = rope.cos_sin[rope.positions.long()].float()[:, None, :].chunk(2, dim=-1)
    turned, rest = x[..., :dim], x[..., dim:]
    if rope.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    pair = first * cos - second * sin, second * cos + first * sin
    joined = torch.stack(pair, dim=-1).flatten(-2) if rope.interleaved else torch.cat(pair, dim=-1)
    return torch.cat([joined, rest], dim=-1)


def quantise(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x / scale clamped to the range of the fp8 `dtype`."""
    limit = torch.finfo(dtype).max
    return (x.float() / scale).clamp(-limit, limit).to(dtype)


def kv_write(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    rope: Rope | None = None,
    scales: Fp8Scales | None = None,
) -> None:
    """As `flashinfer_ext.kv_write.kv_write`."""
    new_k = rotate(k, rope) if rope else k
    new_k = quantise(new_k, scales.k, k_cache.dtype) if scales else new_k.to(k_cache.dtype)
    new_v = quantise(v, scales.v, v_cache.dtype) if scales else v.to(v_cache.dtype)
    tokens = k_cache.shape[1]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_cache[slot // tokens, slot % tokens] = new_k[token]
            v_cache[slot // tokens, slot % tokens] = new_v[token]


def zero_pages(buffer: torch.Tensor, page_bytes: int, ids: torch.Tensor) -> None:
    """As `flashinfer_ext.pages.zero_pages`."""
    for page in ids.tolist():
        if page >= 0:
            buffer[page * page_bytes : (page + 1) * page_bytes] = 0


def copy_pages(
    buffer: torch.Tensor, page_bytes: int, source_ids: torch.Tensor, target_ids: torch.Tensor
) -> None:
    """As `flashinfer_ext.pages.copy_pages`."""
    pages = buffer[: buffer.numel() // page_bytes * page_bytes].view(-1, page_bytes)
    for source, target in zip(source_ids.tolist(), target_ids.tolist(), strict=True):
        if source >= 0 and target >= 0:
            pages[target] = pages[source]


def copy_states(
    sources: list[torch.Tensor],
    targets: list[torch.Tensor],
    source_slots: torch.Tensor,
    target_slots: torch.Tensor,
) -> None:
    """As `flashinfer_ext.states.StateCopier.copy`."""
    pairs = list(zip(source_slots.tolist(), target_slots.tolist(), strict=True))
    for source, target in zip(sources, targets, strict=True):
        for start, end in pairs:
            if start >= 0 and end >= 0:
                target[end] = source[start]


def table_entries(
    spec: TableSpec,
    page_size_tokens: int,
    batch: BatchInputs,
    virtual_rows: torch.Tensor,
    page_table: torch.Tensor,
) -> list[list[int]]:
    """Entries of every request for one page table, found by asking what each query sees.

    virtual_rows: (rows, pages) int32 virtual pages; page_table: (virtual pages,) int32.
    """
    unit = spec.trim.entry_tokens
    mask = Mask(True, spec.trim.window_left, spec.trim.chunk_tokens)
    fields = (batch.req_rows, batch.kv_lens, batch.q_lens, batch.first_pages)
    result = []
    for row, kv_len, q_len, first in zip(
        *(f[spec.batch_row].tolist() for f in fields), strict=True
    ):
        positions = torch.arange(kv_len)
        seen = mask.visible(positions[max(kv_len - max(q_len, 1), 0) :], positions).any(dim=0)
        start = int(seen.int().argmax()) // unit if kv_len else 0
        entries = []
        for token in range(start * unit, kv_len, unit):
            virtual = int(virtual_rows[row, first + token // page_size_tokens])
            page = int(page_table[virtual]) if virtual >= 0 else -1
            offset = token % page_size_tokens if unit == 1 else 0
            entries.append(max(page, NULL_PAGE) * spec.page_mul + offset + spec.index_add)
        result.append(entries)
    return result


def write_slots(
    spec: TableSpec, page_size_tokens: int, page_table: torch.Tensor, locs: torch.Tensor
) -> list[int]:
    """Write slot of each virtual token for one page table; -1 where there is no page."""
    slots = []
    for loc in locs.tolist():
        page = int(page_table[loc // page_size_tokens]) if loc >= 0 else -1
        slots.append(page * spec.write_mul + loc % page_size_tokens if page >= 0 else -1)
    return slots
