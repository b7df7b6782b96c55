"""Pages for a whole batch: SGLang's `alloc_for_extend`, `alloc_for_decode` and
`alloc_for_spec_decode`, request by request.

The upstream functions ask the allocator for bare slots and never say whose; these reserve what
the batch needs in every group, all or nothing, and then hand pages to requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from sglang.srt.mem_cache.allocation import alloc_req_slots
from sglang.srt.runtime_context import get_parallel

from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache, timed_reserve
from jenga_sglang.adapter.encoder import page_tokens
from jenga_sglang.adapter.staged import to_device, write_rows
from jenga_sglang.core.books.corrupt import agree
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.passing import Wanted
from jenga_sglang.core.running import Running
from jenga_sglang.core.stats import describe_room

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def alloc_for_extend(batch: ScheduleBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give every request of a prefill batch pages up to its new length and write its row.

    Returns virtual token ids of the new tokens (int64, device), req_to_token rows (int64,
    device) and the same rows on the host. Raises ``RuntimeError`` if the pool cannot serve the
    batch, which admission should have prevented.
    """
    cache: JengaPrefixCache = batch.tree_cache
    continuing = [req.kv.holds_kv for req in batch.reqs]
    rows = alloc_req_slots(batch.req_to_token_pool, batch.reqs, cache)
    lengths = batch.seq_lens_cpu.tolist()
    all_running = [cache.bind_row(req) for req in batch.reqs]
    for req, running, prefix, holds_kv in zip(
        batch.reqs, all_running, batch.prefix_lens, continuing, strict=True
    ):
        if holds_kv:
            cache.manager.slide(running, prefix)
        else:
            cache.count_prompt(req, prefix)
    demands = [
        (p, cache.manager.new_pages(p, n)) for p, n in zip(all_running, lengths, strict=True)
    ]
    wanted = [
        cache.wanted_hits(req, start) if cache.manager.passing.may_pass(*demand) else None
        for req, start, demand in zip(batch.reqs, batch.prefix_lens, demands, strict=True)
    ]
    _reserve(cache, demands, wanted)

    new_ids, written = [], []
    firsts = [
        start if holds_kv else 0
        for start, holds_kv in zip(batch.prefix_lens, continuing, strict=True)
    ]
    for req, running, row, start, first, length in zip(
        batch.reqs, all_running, rows, batch.prefix_lens, firsts, lengths, strict=True
    ):
        cache.manager.extend(running, length, publish=not req.skip_radix_cache_insert)
        cache.last_page[row] = running.row[-1]
        ids = cache.token_ids(running.row)[:length]
        written.append(ids[first:])
        new_ids.append(ids[start:].astype(np.int64))
        req.kv.kv_allocated_len = req.kv.kv_committed_len = length
    write_rows(batch.req_to_token_pool.req_to_token, rows, firsts, written)
    for req, start, length in zip(batch.reqs, batch.prefix_lens, lengths, strict=True):
        cache.save_states(req, start, length)
    cache.run_copies()
    cache.measured.step_begins(prompt_tokens=sum(len(ids) for ids in new_ids))
    rows_cpu = torch.tensor(rows, dtype=torch.int64)
    out = to_device(np.concatenate(new_ids), batch.device)
    return out, to_device(rows_cpu, batch.device), rows_cpu


def alloc_for_decode(batch: ScheduleBatch, token_per_req: int) -> torch.Tensor:
    """One more token for every request. Returns their virtual token ids, int64, on the device."""
    # Where drafts are made, `alloc_for_drafts` is asked instead.
    agree("tokens of a request in a decode step", token_per_req, 1)
    cache: JengaPrefixCache = batch.tree_cache
    lengths, places = batch.seq_lens_cpu.numpy(), batch.seq_lens
    offsets = _encoder_tokens(batch)
    if offsets is not None:
        lengths = lengths + offsets
        places = places + to_device(offsets, batch.device)
    rows = batch.req_pool_indices_cpu.numpy()
    slots = lengths % cache.page_size
    _open_pages(cache, batch.reqs, rows, lengths, (slots == 0).nonzero()[0].tolist())
    if cache.manager.memory.state_groups:
        for index in np.flatnonzero(slots == cache.page_size - 1).tolist():
            req, length = batch.reqs[index], int(lengths[index])
            cache.save_states(req, length, length + 1)
    cache.run_copies()
    cache.measured.step_begins(decodes=len(rows))
    out = to_device(cache.last_page[rows] * cache.page_size + slots, batch.device)
    batch.req_to_token_pool.write((batch.req_pool_indices, places), out.to(torch.int32))
    for req in batch.reqs:
        kv = req.kv
        length = kv.kv_committed_len + 1
        kv.kv_allocated_len = kv.kv_committed_len = length
        req.lock.receipt.grow_within_pages(length)
    return out


def alloc_for_drafts(
    cache: JengaPrefixCache, reqs: Sequence[Req], starts: Sequence[int], stops: Sequence[int]
) -> None:
    """Room for drafts behind what each of ``reqs`` has committed: its row goes on from ``starts``
    to ``stops`` tokens. Windows slide to what is committed.

    Raises ``RuntimeError`` if the pool cannot serve the batch.
    """
    manager = cache.manager
    tails: list[tuple[Running, int]] = []
    for req, stop in zip(reqs, stops, strict=True):
        running: Running = req.lock.receipt
        manager.commit(running, req.kv.kv_committed_len)
        tails.append((running, stop))
    demands = [(running, manager.new_pages(running, stop)) for running, stop in tails]
    if demands := [(running, pages) for running, pages in demands if pages]:
        _reserve(cache, demands)
    for running, stop in tails:
        manager.extend_tail(running, stop)
    _write_tails(cache, reqs, starts, stops)
    cache.measured.step_begins(decodes=len(reqs))


def _write_tails(
    cache: JengaPrefixCache, reqs: Sequence[Req], starts: Sequence[int], stops: Sequence[int]
) -> None:
    """The rows of ``reqs`` from ``starts`` to ``stops``, or to their ends: at its full length a
    request is given more room than its row has, and needs no more than that."""
    table = cache.req_to_token_pool.req_to_token
    rows, firsts, written = [], [], []
    for req, start, stop in zip(reqs, starts, stops, strict=True):
        page = start // cache.page_size
        ids = cache.token_ids(req.lock.receipt.row[page:])
        first, last = (min(n, table.shape[1]) - page * cache.page_size for n in (start, stop))
        if last > first:
            rows.append(req.kv.req_pool_idx)
            firsts.append(start)
            written.append(ids[first:last])
        req.kv.kv_allocated_len = max(req.kv.kv_allocated_len, stop)
    if rows:
        write_rows(table, rows, firsts, written)


def _open_pages(
    cache: JengaPrefixCache, reqs: list[Req], rows: Ids, lengths: Ids, opening: list[int]
) -> None:
    """One more page for each of the requests at the indices ``opening``."""
    if not opening:
        return
    all_running: list[Running] = [reqs[index].lock.receipt for index in opening]
    for running, length in zip(all_running, lengths[opening].tolist(), strict=True):
        cache.manager.slide(running, length)
    _reserve(cache, [(running, 1) for running in all_running])
    cache.last_page[rows[opening]] = cache.manager.extend_each(all_running)


def _encoder_tokens(batch: ScheduleBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """(B,) tokens of the pages that an encoder's part takes in front of each request's text, which
    SGLang's lengths leave out; None for a model without."""
    if not batch.model_config.is_encoder_decoder:
        return None
    return np.fromiter(map(page_tokens, batch.reqs), np.int64, len(batch.reqs))


def others_hold_pages(cache: JengaPrefixCache) -> bool:
    """Whether requests of another batch run, where stages of a pipeline have several."""
    running = cache.manager.running
    return get_parallel().pp_size > 1 and bool(running)


def _reserve(
    cache: JengaPrefixCache,
    demands: Sequence[tuple[Running, int]],
    wanted: Sequence[Wanted] | None = None,
) -> None:
    if not timed_reserve(cache, demands, wanted):
        pages = sum(count for _, count in demands)
        raise RuntimeError(
            f"jenga: {pages} pages were admitted but do not fit. {describe_room(cache.manager)}"
        )
