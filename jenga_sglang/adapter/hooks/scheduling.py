"""Where the scheduler admits requests and places their pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_policy import AddReqResult

from jenga_sglang.adapter.cache import batch_alloc
from jenga_sglang.adapter.encoder import page_tokens
from jenga_sglang.adapter.sglang_views import ReqView, SchedulerView
from jenga_sglang.hook import AROUND, hook

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
BATCH = "sglang.srt.managers.schedule_batch"


@hook(
    f"{SCHEDULER}.init_req_max_new_tokens",
    ("self", "req"),
    AROUND,
    until="the allocator may give a reason for a refusal",
)
def _init_req_max_new_tokens(
    original: Callable[..., None], scheduler: SchedulerView, req: ReqView
) -> None:
    """A prompt that the pool can never serve is refused with the longest that it can."""
    allocator = scheduler.token_to_kv_pool_allocator
    with allocator.asking_with(page_tokens(req), req.multimodal_inputs):
        why = allocator.why_refused(len(req.origin_input_ids), scheduler.chunked_prefill_size)
        if why:
            req.set_finish_with_abort(why)
        original(scheduler, req)


@hook(
    f"{SCHEDULER}._get_new_batch_prefill_raw",
    ("self", "prefill_delayer_single_pass", "running_batch"),
    AROUND,
    until="SGLang asks the allocator whether a full batch stays full",
)
def _ask_again(original: Callable[..., Any], scheduler: SchedulerView, **kwargs: Any) -> Any:
    """A batch that was full may have room again before a request leaves, for windows slide: ask in
    every pass. The prefix cache sees that the step before has ended, who waits and who goes on, and
    the watchdog looks at what came of it."""
    scheduler.tree_cache.measured.pass_begins()
    admission = scheduler.tree_cache.admission
    last, running = scheduler.last_batch, kwargs["running_batch"].reqs
    with admission.passing(scheduler, [*running, *(last.reqs if last is not None else ())]):
        if admission.is_due():
            kwargs["running_batch"].batch_is_full = False
        plan = original(scheduler, **kwargs)
    scheduler.token_to_kv_pool_allocator.watchdog.look(scheduler)
    return plan


@hook(
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req",
    ("self", "req", "has_chunked_req", "truncation_align_size"),
    AROUND,
    until="SGLang's queue holds a request back whose prefix is being computed, in any order",
)
def _add_one_req(
    original: Callable[..., AddReqResult], adder: Any, req: ReqView, **kwargs: Any
) -> AddReqResult:
    """A request whose prefix another is computing waits for that, and lets the next one pass."""
    admission = adder.tree_cache.admission
    if admission.awaits(req, adder.can_run_list):
        return AddReqResult.CONTINUE
    admission.now.offered = req
    return original(adder, req, **kwargs)


@hook(f"{BATCH}.alloc_for_extend", ("batch",), AROUND, until="the allocator interface names them")
def _alloc_for_extend(original: Callable[..., Any], batch: Any) -> Any:
    """Pages are placed per request; `alloc_extend` does not name the requests."""
    return batch_alloc.alloc_for_extend(batch)


@hook(
    f"{BATCH}.alloc_for_decode",
    ("batch", "token_per_req"),
    AROUND,
    until="the allocator interface names them",
)
def _alloc_for_decode(original: Callable[..., Any], batch: Any, token_per_req: int) -> Any:
    """Pages are placed per request; `alloc_decode` does not name the requests."""
    return batch_alloc.alloc_for_decode(batch, token_per_req)


@hook(
    f"{BATCH}.ScheduleBatch.retract_decode",
    ("self",),
    AROUND,
    until="SGLang retracts the last request of a stage's batch",
)
def _retract_decode(original: Callable[..., Any], batch: Any) -> Any:
    """With stages (`--pp-size`) several batches take turns. SGLang aborts the last request of one
    that has no room; where requests of the others hold what it lacks, it waits for them."""
    retracted, ratio, aborted = original(batch)
    if batch_alloc.others_hold_pages(batch.tree_cache):
        for req in aborted:
            req.to_finish = None
        retracted, aborted = [*retracted, *aborted], []
    return retracted, ratio, aborted
