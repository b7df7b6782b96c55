"""Prefill and decode on servers of their own: what is told to SGLang's transfer engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jenga_sglang.adapter import disagg
from jenga_sglang.adapter.hooks import mooncake
from jenga_sglang.hook import AFTER, AROUND, hook, hooks_of, install

PREFILL = "sglang.srt.disaggregation.prefill"
DECODE = "sglang.srt.disaggregation.decode"
QUEUE = f"{DECODE}.DecodePreallocQueue"
BOOTSTRAP = f"{PREFILL}.PrefillBootstrapQueue"
POOL_DESCRIBES = "a pool describes its components"
PAYLOADS = "payloads are asked for by component, not by kind of state"


@hook(
    f"{PREFILL}.setup_state_kv_args",
    (
        *("kv_args", "token_to_kv_pool", "draft_token_to_kv_pool", "total_kv_layers"),
        "req_to_token_pool",
    ),
    AFTER,
    until=POOL_DESCRIBES,
)
@hook(
    f"{DECODE}.setup_state_kv_args",
    (
        *("kv_args", "token_to_kv_pool", "draft_token_to_kv_pool", "total_kv_layers"),
        "req_to_token_pool",
    ),
    AFTER,
    until=POOL_DESCRIBES,
)
def _setup_state_kv_args(
    result: None, kv_args: Any, token_to_kv_pool: Any, *args: Any, **kwargs: Any
) -> None:
    """Every layer group is a component; SGLang describes pools of its own classes."""
    from sglang.srt.runtime_context import get_parallel

    install(hooks_of(mooncake))
    disagg.describe_components(kv_args, token_to_kv_pool, get_parallel().attn_tp_size)


@hook(f"{BOOTSTRAP}.create_sender", ("self", "req", "num_kv_heads"), AFTER, until=PAYLOADS)
def _create_sender(created: bool, queue: Any, req: Any, num_kv_heads: int) -> None:
    """A prompt's pages are named by where they are in each group; SGLang sends the page numbers of
    its rows."""
    if created:
        components = queue.token_to_kv_pool.components
        req.disagg_kv_sender = disagg.Sender(req.disagg_kv_sender, req, components)


@hook(
    f"{BOOTSTRAP}._num_pages_to_send", ("self", "req", "decode_prefix_len"), AROUND, until=PAYLOADS
)
def _num_pages_to_send(
    original: Callable[..., int], queue: Any, req: Any, decode_prefix_len: int
) -> int:
    """A page of tokens is one item for each stripe of its group."""
    pages = original(queue, req, decode_prefix_len)
    stripes: int = queue.token_to_kv_pool.components.kv_stripes
    return pages * stripes


@hook(
    f"{QUEUE}._match_prefix_and_lock",
    ("self", "req"),
    AROUND,
    until="a request that has to wait drops whatever lock it has",
)
def _match_prefix_and_lock(original: Callable[..., Any], queue: Any, req: Any) -> Any:
    """A lock on no prefix is a request here; SGLang forgets such a one where its request has to
    wait."""
    match = original(queue, req)
    if not match.l1_prefix_len:
        queue.tree_cache.unlock(req.lock)
        req.lock = None
    return match


@hook(
    f"{QUEUE}._alloc_for_decode_prealloc",
    ("self", "allocator", "kwargs"),
    AROUND,
    until="the allocator interface names the request",
)
def _alloc_for_decode_prealloc(
    original: Callable[..., Any], queue: Any, allocator: Any, **kwargs: Any
) -> Any:
    """A prompt takes, in every group, only the pages that decoding needs of it."""
    return disagg.take_arrival(
        queue.tree_cache, kwargs["req"], kwargs["fill_len"], kwargs["total_prefix_len"]
    )


@hook(
    f"{QUEUE}._transfer_page_indices",
    ("self", "decode_req", "kv_indices", "page_size"),
    AROUND,
    until=PAYLOADS,
)
def _transfer_page_indices(
    original: Callable[..., Any], queue: Any, decode_req: Any, kv_indices: Any, page_size: int
) -> Any:
    """Where a prompt arrives: in small pages, not in the page numbers of a row."""
    pages = original(queue, decode_req, kv_indices, page_size)
    return queue.token_to_kv_pool.components.kv_vector(pages)


@hook(
    f"{QUEUE}._send_kv_metadata",
    ("self", "decode_req", "kv_indices", "page_size", "state_indices", "metadata_kwargs"),
    AROUND,
    until=PAYLOADS,
)
def _send_kv_metadata(
    original: Callable[..., None],
    queue: Any,
    decode_req: Any,
    kv_indices: Any,
    page_size: int,
    state_indices: Any = None,
    **kwargs: Any,
) -> None:
    """Where a prompt arrives in the groups that forget, and in states."""
    prefix = kwargs["decode_prefix_len"]
    vectors = disagg.received_vectors(queue.token_to_kv_pool, decode_req.req, prefix)
    original(queue, decode_req, kv_indices, page_size, vectors, **kwargs)


@hook(
    f"{DECODE}.SchedulerDisaggregationDecodeMixin.get_next_disagg_decode_batch_to_run",
    ("self", "running_batch"),
    AROUND,
    until="SGLang saves no state that a step in flight changes",
)
def _get_next_disagg_decode_batch_to_run(
    original: Callable[..., Any], scheduler: Any, running_batch: Any
) -> Any:
    """A request that gives way is saved with its recurrent state, which moves on in place: with a
    step in flight it would be a token ahead, so that step ends first."""
    return disagg.next_decode_batch(original, scheduler, running_batch)


@hook(
    f"{QUEUE}._ensure_prefill_info",
    ("self", "addr_to_reqs"),
    AROUND,
    until="a mismatch ends requests and not the server",
)
def _ensure_prefill_info(original: Callable[..., Any], queue: Any, addr_to_reqs: Any) -> Any:
    """A prefill server with another layout, or without Jenga, is refused before it sends a byte,
    and this server goes on."""
    return disagg.ensure_same_layout(original, queue, addr_to_reqs)
