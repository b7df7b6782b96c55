"""SGLang's `flash_attn_with_kvcache` in plain torch, as far as Jenga's backend calls it.

Tables, lengths and offsets are read as the kernel is given them. Rows behind a request's last token
are not read; those that a window hides are multiplied by zero, so that NaN in them spoils a result.
"""

import torch

from flashinfer_ext import reference
from flashinfer_ext.reference import Mask


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    qv: torch.Tensor | None = None,
    *,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """q (rows, Hq, Dk), caches (P, T, H, D), qv (rows, Hq, Dv): what else V is multiplied with."""
    assert page_table.dtype == cache_seqlens.dtype == cu_seqlens_q.dtype == torch.int32
    assert page_table.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == 1
    assert len(page_table) == len(cache_seqlens) == len(cu_seqlens_q) - 1
    assert window_size[1] == (0 if window_size[0] >= 0 else -1)
    offsets, tokens = cu_seqlens_q.tolist(), k_cache.shape[1]
    assert offsets[-1] == len(q) and cu_seqlens_q.diff().max() <= max_seqlen_q
    for request, length in enumerate(cache_seqlens.tolist()):
        rows = slice(*offsets[request : request + 2])
        pages = page_table[request, : -(-length // tokens)].long()
        keys, values = (c[pages].flatten(0, 1)[:length].to(q.dtype) for c in (k_cache, v_cache))
        queries = q[rows]
        if qv is not None:
            queries, keys = torch.cat([queries, qv[rows]], -1), torch.cat([keys, values], -1)
        places = torch.arange(length - len(queries), length)
        visible = Mask(causal, window_size[0]).visible(places, torch.arange(length))
        given = None if sinks is None else sinks.to(q.dtype)
        out[rows] = reference.attention(
            queries, keys, values, visible, softmax_scale, softcap, given
        )[0]
    return out
