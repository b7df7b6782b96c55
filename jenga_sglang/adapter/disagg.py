"""Prefill on one server, decode on another: SGLang's queues on either side, over our pages.

`adapter/transfer.py` says what is sent; here is when SGLang asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.adapter.staged import to_device
from jenga_sglang.adapter.transfer import Components, Vector, layout_name
from jenga_sglang.core.arrival import arrive
from jenga_sglang.core.stats import describe_room
from jenga_sglang.refusal import refuse

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from jenga_sglang.adapter.kv_pool import JengaKVPool

logger = logging.getLogger(__name__)


def refuse_what_is_not_sent(configurator: Any) -> None:
    """End a start, with one line, whose prompts cannot be sent to another server."""
    from sglang.srt.disaggregation.base.conn import StateType
    from sglang.srt.environ import envs
    from sglang.srt.runtime_context import get_disagg

    mode = get_disagg().disaggregation_mode
    if mode == "null":
        return
    flag = f"--disaggregation-mode {mode}"
    if not hasattr(StateType, "REQUEST_ROW"):
        raise refuse(flag, "needs SGLang 0.5.23 with --memory-backend jenga; install that")
    if envs.SGLANG_DISAGG_STAGING_BUFFER.get():
        raise refuse(
            f"SGLANG_DISAGG_STAGING_BUFFER with {flag}",
            "staging buffers cut SGLang's own rows, which --memory-backend jenga does not have; "
            "unset it",
        )
    if configurator.model_config.is_encoder_decoder:
        raise refuse(
            flag,
            "what an encoder makes of images or sound is not sent between servers under "
            "--memory-backend jenga yet; leave one of the two out",
        )


def describe_components(kv_args: Any, pool: JengaKVPool, attn_tp_size: int) -> None:
    """Complete what a transfer engine is told of ``pool``, whose "KV" it knows already."""
    # Of SGLang's kinds of states the one whose items are sent as they are, by position, and whose
    # own index, the request's row, costs nothing to make.
    from sglang.srt.disaggregation.base.conn import StateType
    from sglang.srt.disaggregation.utils import append_state_component

    components = pool.components
    kv_args.kv_layout = layout_name(pool.manager, attn_tp_size)
    # With a number each, items are not taken for K in the first half and V in the second.
    kv_args.kv_layer_ids = [0] * len(kv_args.kv_data_ptrs)
    for group in components.others:
        buffers = components.buffers(group)
        append_state_component(kv_args, StateType.REQUEST_ROW, *buffers, layer_ids=[group])


# -- prefill --------------------------------------------------------------------------------------


class Sender:
    """SGLang's sender of a request, which it gives virtual pages and the request's row."""

    # Indices are on the host already, whatever the device.
    supports_host_tensor_indices = False

    def __init__(self, sender: Any, req: Req, components: Components) -> None:
        self._sender = sender
        self._req = req
        self._components = components

    def send(
        self, pages: Any, rows: Sequence[Any] | None = None, num_kv_tokens: int | None = None
    ) -> None:
        """Send a chunk of the prompt, given as virtual pages; with the request's ``rows`` it is
        the last, and all that decoding needs beside "KV" goes with it."""
        items = self._components.kv_vector(np.asarray(pages))
        others = None if rows is None else self._others()
        self._sender.send(items, others, num_kv_tokens=num_kv_tokens)

    def _others(self) -> list[Vector]:
        req = self._req
        length = len(req.origin_input_ids)
        return self._components.other_vectors(
            req.lock.receipt, req.disagg_decode_prefix_len, length
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sender, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What SGLang notes on its sender is for its sender.
        target = self if name in ("_sender", "_req", "_components") else self._sender
        object.__setattr__(target, name, value)


# -- decode ---------------------------------------------------------------------------------------


def take_arrival(
    cache: JengaPrefixCache, req: Req, fill_tokens: int, prefix_tokens: int
) -> torch.Tensor:
    """Pages for a prompt of ``fill_tokens`` tokens that another server sends, behind what of it is
    cached here. Returns the virtual token ids behind the prefix, int64, on the device.

    Raises ``RuntimeError`` where they do not fit, which admission should have prevented.
    """
    running = cache.bind_row(req)
    if not arrive(cache.manager, running, fill_tokens):
        raise RuntimeError(
            f"jenga: a prompt of {fill_tokens} tokens was admitted but does not fit. "
            f"{describe_room(cache.manager)}"
        )
    cache.last_page[req.kv.req_pool_idx] = running.row[-1]
    req.kv.kv_allocated_len = fill_tokens
    ids = cache.token_ids(running.row)[prefix_tokens:fill_tokens]
    return to_device(ids, cache.device).long()


def received_vectors(pool: JengaKVPool, req: Req, prefix_tokens: int) -> list[Vector]:
    """Where the prompt of ``req`` arrives in every component but "KV"."""
    length = req.kv.kv_committed_len
    return pool.components.other_vectors(req.lock.receipt, prefix_tokens, length)


def ensure_same_layout(
    original: Callable[..., Any], queue: Any, waiting: dict[str, list[Any]]
) -> tuple[dict[str, list[Any]], list[Any]]:
    """`DecodePreallocQueue._ensure_prefill_info`, one prefill server after the other: requests of
    one that cannot be received from are aborted, with the reason; the others go on."""
    ready: dict[str, list[Any]] = {}
    remaining: list[Any] = []
    for address, decode_reqs in waiting.items():
        try:
            one_ready, one_remaining = original(queue, {address: decode_reqs})
            if address in one_ready:
                _check_layout(queue.kv_manager, address)
        except RuntimeError as error:
            _abort(queue.kv_manager, address, decode_reqs, str(error))
            continue
        ready |= one_ready
        remaining += one_remaining
    return ready, remaining


class StepInFlight:
    """While a decode server chooses its next batch: whether a request would have to give way with
    a step in flight that changes its recurrent state. Then nobody decodes in this pass; in the next
    one the state is what the request's tokens say.

    ``waiting`` is the batch that was to be decoded.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
        self._changes_states = pool.states is not None and bool(_results(scheduler))
        self.waiting: Any = None

    def update(self, batch: Any) -> Any:
        """`Scheduler.update_running_batch`, or an empty batch to wait."""
        from sglang.srt.managers.schedule_batch import ScheduleBatch

        if not (self._changes_states and self._lacks_room(batch)):
            return type(self._scheduler).update_running_batch(self._scheduler, batch)
        self.waiting = batch
        return ScheduleBatch(reqs=[], batch_is_full=False)

    def _lacks_room(self, batch: Any) -> bool:
        # As SGLang does before it asks.
        batch.filter_batch(reqs_to_exclude=self._scheduler._reqs_finishing_inflight(batch))
        return not batch.is_empty() and not batch.check_decode_mem()


def _results(scheduler: Any) -> Any:
    """Of steps that have been started; a scheduler without overlap keeps none."""
    return getattr(scheduler, "result_queue", ())


def next_decode_batch(original: Callable[..., Any], scheduler: Any, running_batch: Any) -> Any:
    """`get_next_disagg_decode_batch_to_run`, but that nobody gives way in the middle of a step."""
    step = StepInFlight(scheduler)
    scheduler.update_running_batch = step.update
    try:
        plan = original(scheduler, running_batch=running_batch)
    finally:
        del scheduler.update_running_batch
    if step.waiting is not None:
        plan = msgspec.structs.replace(plan, running_batch=step.waiting)
    return plan


def _check_layout(kv_manager: Any, address: str) -> None:
    """SGLang compares layouts where both servers have one."""
    theirs = kv_manager.prefill_info_table[address].kv_layout
    if theirs != kv_manager.kv_layout:
        raise RuntimeError(f"it has {theirs or 'no Jenga memory'}")


def _abort(kv_manager: Any, address: str, decode_reqs: list[Any], why: str) -> None:
    message = (
        f"jenga: the prefill server {address} cannot send to this one, which has "
        f"{kv_manager.kv_layout}: {why}. Both need --memory-backend jenga, the same model, dtypes, "
        "--page-size, --context-length and tensor parallelism"
    )
    logger.error(message)
    kv_manager.prefill_info_table.pop(address, None)
    for decode_req in decode_reqs:
        if decode_req.kv_receiver is not None:
            decode_req.kv_receiver.abort()
            kv_manager.record_failure(decode_req.req.bootstrap_room, message)


def foreign_layout(kv_args: Any, peer: Any) -> str | None:
    """Why a decode server that has registered cannot be sent to, or None."""
    ours = (list(kv_args.kv_item_lens), [list(lens) for lens in kv_args.state_item_lens])
    theirs = (list(peer.dst_kv_item_lens), [list(lens) for lens in peer.dst_state_item_lens])
    if ours == theirs:
        return None
    return (
        "jenga: the decode server has other components of memory than this prefill server; both "
        "need --memory-backend jenga and the same layout"
    )
