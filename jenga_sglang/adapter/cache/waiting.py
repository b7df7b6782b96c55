"""Why a request waits: what is running, what is next, and what keeps it out, in words.

What SGLang's scheduler decided in its last pass is reported as it was decided; what a prompt
would meet that has not been sent is worked out with the same budget and the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from jenga_sglang.adapter.cache.admission_pass import Refusal
from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.sglang_views import ReqView, SchedulerView
from jenga_sglang.core.admission import Weighing
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.manager import Manager

MOST_SHOWN = 100  # waiting requests, in the order in which they are admitted


@dataclass(frozen=True)
class Verdict:
    """``answer`` is "now", "later" or "never"; ``cause`` one word for what decides it."""

    answer: str
    cause: str
    reason: str
    weighing: dict[str, Any] | None = None


def queue_facts(scheduler: SchedulerView) -> dict[str, Any]:
    """Requests that run and wait, and the one that is next with the reason why it is not in."""
    waiting = scheduler.waiting_queue
    return {
        "running_requests": sum(map(len, _running(scheduler))) + _is_chunking(scheduler),
        "max_running_requests": scheduler.max_running_requests,
        "waiting_requests": len(waiting),
        "grammar_requests": len(scheduler.grammar_manager.grammar_queue),
        "paused": bool(scheduler._engine_paused),
        "forward_passes": scheduler.forward_ct,
        "head": _waiting(waiting[0]) | asdict(_why_waiting(scheduler)) if waiting else None,
        "waiting": [_waiting(req) for req in waiting[:MOST_SHOWN]],
    }


def _waiting(req: ReqView) -> dict[str, Any]:
    return {
        "request_id": req.rid,
        "prompt_tokens": len(req.origin_input_ids),
        "output_tokens": len(req.output_ids),
        "max_new_tokens": req.sampling_params.max_new_tokens,
        "waited_seconds": time.perf_counter() - req.time_stats.wait_queue_entry_time,
    }


def explain(scheduler: SchedulerView, prompt_tokens: int, max_new_tokens: int) -> dict[str, Any]:
    """Whether a prompt of this length, nothing of it cached, would be admitted in the next pass."""
    return {
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": max_new_tokens,
        **asdict(_would_admit(scheduler, prompt_tokens, max_new_tokens)),
    }


def _why_waiting(scheduler: SchedulerView) -> Verdict:
    last = scheduler.tree_cache.admission.now
    if scheduler._engine_paused:
        return _PAUSED
    if scheduler.waiting_queue and scheduler.tree_cache.awaits_storage(scheduler.waiting_queue[0]):
        return Verdict("later", "storage", "its prefix is being read from storage")
    if last.refusal is not None:
        return _refused(scheduler.token_to_kv_pool_allocator.manager, last.refusal)
    if scheduler.waiting_queue and scheduler.waiting_queue[0].rid in last.held_back:
        return Verdict(
            "later", "prefix", "another request computes a prefix of it, from where it will go on"
        )
    return _no_row(scheduler) or Verdict(
        "later", "step", "it is next: the step that is running was full before its turn"
    )


def _would_admit(scheduler: SchedulerView, prompt_tokens: int, max_new_tokens: int) -> Verdict:
    allocator = scheduler.token_to_kv_pool_allocator
    manager: Manager = allocator.manager
    chunk = scheduler.chunked_prefill_size
    never = allocator.why_refused(prompt_tokens, chunk)
    if never:
        return Verdict("never", "length", never)
    if scheduler._engine_paused:
        return _PAUSED
    if scheduler.waiting_queue:
        ahead = len(scheduler.waiting_queue)
        why = _why_waiting(scheduler)
        return Verdict(
            "later", "queue", f"{ahead} requests wait before it; of the first: {why.reason}"
        )
    if verdict := _no_row(scheduler):
        return verdict
    room = allocator.max_new_tokens_for_memory(
        prompt_tokens,
        max_new_tokens,
        token_capacity=0,
        sliding_window_size=None,
        chunk_size=chunk,
    )
    with scheduler.tree_cache.admission.asking(scheduler.chunked_req) as question:
        budget = _budget(scheduler)
        verdict = _chunk_ahead(scheduler, budget)
        if verdict is None and _fits(budget, prompt_tokens, room or 0, chunk):
            weighing = budget.weigh_candidate()
            words, facts = _words(manager, weighing), _facts(manager, weighing)
            return Verdict("now", "fits", f"it fits; {words}", facts)
        return verdict or _refused(manager, question.refusal)


def _fits(budget: JengaPrefillBudget, prompt_tokens: int, room_tokens: int, chunk: int) -> bool:
    fits, _ = budget.check_prefill(
        extend_input_len=prompt_tokens,
        total_tokens=0,
        max_new_tokens=min(room_tokens, CLIP_MAX_NEW_TOKENS),
        input_tokens=prompt_tokens,
        swa_host_hit_length=0,
        chunk_limit=chunk,
    )
    return fits


def _budget(scheduler: SchedulerView) -> JengaPrefillBudget:
    """The budget of a pass that began now, with what running requests are still promised."""
    adder = scheduler.get_prefill_adder_class()(
        scheduler.page_size,
        scheduler.tree_cache,
        scheduler.token_to_kv_pool_allocator,
        scheduler.running_batch,
        scheduler.new_token_ratio_tracker.current,
        scheduler.max_prefill_tokens,
        scheduler.chunked_prefill_size,
    )
    budget: JengaPrefillBudget = adder.memory_budget
    return budget


def _chunk_ahead(scheduler: SchedulerView, budget: JengaPrefillBudget) -> Verdict | None:
    req, chunk = scheduler.chunked_req, scheduler.chunked_prefill_size
    if req is None:
        return None
    left = len(req.full_untruncated_fill_ids) - req.prefix_len
    fits = budget.fit_chunk(extend_input_len=left, max_new_tokens=0, chunk_limit=chunk)
    if fits is None:
        return _refused(budget.manager, scheduler.tree_cache.admission.now.refusal)
    if left >= chunk:
        return _chunking(left)
    budget.reserve(left, 0)
    return None


def _refused(manager: Manager, refusal: Refusal | None) -> Verdict:
    refusal = present(refusal, "a request is refused for no reason")
    facts = _facts(manager, refusal.weighing)
    words = _words(manager, refusal.weighing)
    if refusal.cause == "cache":
        reason = "cached prefixes that other requests wait for are worth more than starting it now"
        return Verdict("later", "cache", f"{reason}: {words}", facts)
    if refusal.cause == "chunk":
        return Verdict(
            "later", "chunk", f"a longer prompt before it waits for room to go on: {words}", facts
        )
    return Verdict("later", "memory", f"it does not fit yet: {words}", facts)


def _chunking(left: int) -> Verdict:
    return Verdict(
        "later", "chunk", f"a longer prompt is being computed in chunks, {left:,} tokens to go"
    )


def _no_row(scheduler: SchedulerView) -> Verdict | None:
    running = len(scheduler.running_batch.reqs)
    if scheduler.chunked_req is not None:
        req = scheduler.chunked_req
        left = len(req.full_untruncated_fill_ids) - req.prefix_len
        return _chunking(left) if left >= scheduler.chunked_prefill_size else None
    if scheduler.get_num_allocatable_reqs(running) > 0:
        return None
    return Verdict(
        "later",
        "requests",
        f"{running} requests run, and no more than {scheduler.max_running_requests} may "
        "(--max-running-requests)",
    )


def _is_chunking(scheduler: SchedulerView) -> bool:
    req = scheduler.chunked_req
    return req is not None and not any(req in reqs for reqs in _running(scheduler))


def _running(scheduler: SchedulerView) -> list[Sequence[ReqView]]:
    """Requests that decode, by batch: a stage of a pipeline has as many as there are stages."""
    batches = getattr(scheduler, "running_mbs", None) or [scheduler.running_batch]
    return [batch.reqs for batch in batches]


def _words(manager: Manager, weighing: Weighing) -> str:
    names = (cut.spec.name for cut in manager.geometry.groups)
    asked = ", ".join(f"{name} {n:,}" for name, n in zip(names, weighing.asked, strict=True))
    text = (
        f"it asks for {sum(weighing.asked):,} large pages ({asked}); running requests may still "
        f"come to need {weighing.promised:,}; {weighing.available:,} are free or only cached"
    )
    if weighing.missing:
        missing_bytes = weighing.missing * manager.geometry.large_page_bytes
        text += f": {weighing.missing:,} too few ({human_bytes(missing_bytes)})"
    return text


def _facts(manager: Manager, weighing: Weighing) -> dict[str, Any]:
    return {
        "asked_large_pages": list(weighing.asked),
        "promised_large_pages": weighing.promised,
        "available_large_pages": weighing.available,
        "missing_large_pages": weighing.missing,
    }


_PAUSED = Verdict("later", "paused", "generation is paused (/continue_generation resumes it)")
