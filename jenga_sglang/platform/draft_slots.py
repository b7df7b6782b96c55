"""Where drafts are kept, in plain torch: what SGLang has as Triton kernels only."""

from __future__ import annotations

from typing import Any

import torch


def assign_extend_cache_locs(
    *,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    **unused: Any,
) -> torch.Tensor:
    """(tokens,) int64: of each request's row the slots from ``start_offset`` to ``end_offset``."""
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    return torch.cat([req_to_token[row, start:stop] for row, start, stop in spans]).long()


def assign_draft_cache_locs_contiguous_func(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    topk: int,
    num_cols: int,
    positions: torch.Tensor | None = None,
    mrope: torch.Tensor | None = None,
) -> None:
    """Write the ``topk · num_cols`` slots that follow each request's tokens into
    ``out_cache_loc``, and where drafts begin into ``positions`` (batch · topk,) and ``mrope``
    (3, batch · topk)."""
    count = topk * num_cols
    out_cache_loc.copy_(
        assign_extend_cache_locs(
            req_pool_indices=req_pool_indices,
            req_to_token=req_to_token,
            start_offset=seq_lens,
            end_offset=seq_lens + count,
        ).view_as(out_cache_loc)
    )
    for places in (positions, mrope):
        if places is not None:
            places.copy_(seq_lens.repeat_interleave(topk).expand_as(places))


def assign_req_to_token_pool_func(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Put new slots into each request's row, from ``start_offset`` to ``end_offset``."""
    at = 0
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, stop in spans:
        new = out_cache_loc[at : at + stop - start]
        req_to_token[row, start:stop] = new.to(req_to_token.dtype)
        at += stop - start


def fill_front_out_cache_loc_func(
    num_front: torch.Tensor, out_cache_loc: torch.Tensor, front_out_cache_loc: torch.Tensor
) -> None:
    """Put the first ``num_front`` (batch,) slots of each request one after the other."""
    windows = out_cache_loc.view(len(num_front), -1)
    counts = num_front.tolist()
    slots = torch.cat([window[:n] for window, n in zip(windows, counts, strict=True)])
    front_out_cache_loc[: len(slots)] = slots


def fill_accept_out_cache_loc_func(
    accept_index: torch.Tensor,
    out_cache_loc: torch.Tensor,
    accept_out_cache_loc: torch.Tensor,
    size: int,
) -> None:
    """Put the slots of accepted drafts one after the other; -1 in ``accept_index`` is none."""
    accepted = accept_index.flatten()
    accepted = accepted[accepted >= 0].long()
    accept_out_cache_loc[: len(accepted)] = out_cache_loc[accepted]


def fill_bonus_tokens_func(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """The last of each request's accepted tokens, ``accept_stride`` of which are a request's."""
    last = accept_tokens.view(batch_size, accept_stride).gather(1, accept_lens.long()[:, None] - 1)
    bonus_tokens.copy_(last.flatten())


def gather_spec_extras(
    indices: torch.Tensor,
    topk_p_buf: torch.Tensor,
    topk_index_buf: torch.Tensor,
    output_tokens_buf: torch.Tensor,
    hidden_states_buf: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows ``indices`` of what a step has left for the next one."""
    rows = indices.long()
    hidden = None if hidden_states_buf is None else hidden_states_buf[rows]
    return topk_p_buf[rows], topk_index_buf[rows], output_tokens_buf[rows], hidden
