"""Where a request is in a scheduler that computes prompts for another, or answers them."""

from collections.abc import Iterable
from typing import Any


def is_in(scheduler: Any, queue: str, rid: str) -> bool:
    """Whether the request waits or runs in this queue, one of `PREFILL`, `DECODE`."""
    return any(req is not None and req.rid == rid for req in QUEUES[queue](scheduler))


def _reqs(waiting: Iterable[Any]) -> Iterable[Any]:
    return (entry.req for entry in waiting)


# In the order in which a request passes through them.
PREFILL = {
    "bootstrap": lambda s: s.disagg_prefill_bootstrap_queue.queue,
    "waiting": lambda s: s.waiting_queue,
    "chunked": lambda s: [s.chunked_req],
    "inflight": lambda s: s.disagg_prefill_inflight_queue,
}
DECODE = {
    # Both servers know of it, and it waits for room; an abort before that comes to nothing.
    "prealloc": lambda s: _reqs(
        entry for entry in s.disagg_decode_prealloc_queue.queue if entry.waiting_for_input
    ),
    "transfer": lambda s: _reqs(s.disagg_decode_transfer_queue.queue),
    "running": lambda s: s.running_batch.reqs,
}
QUEUES = PREFILL | DECODE
