"""What a server tells of its pool: usage, metrics, `/server_info`, and answers to questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jenga_sglang import questions
from jenga_sglang.adapter import answers
from jenga_sglang.adapter.observe import metrics
from jenga_sglang.adapter.observe.report import describe
from jenga_sglang.hook import AFTER, AROUND, hook

COMPONENTS = "sglang.srt.managers.scheduler_components"
INTERNAL_STATE = f"{COMPONENTS}.internal_state.SchedulerInternalStateController"


@hook(
    "sglang.srt.managers.scheduler.Scheduler.init_metrics_reporter",
    ("self",),
    AFTER,
    until="a prefix cache's labels name the replica",
)
def _begin_metrics(result: None, scheduler: Any) -> None:
    """`sglang:jenga_*` have the labels of SGLang's scheduler metrics; those that a prefix cache is
    given say `dp_rank="0"` in every replica."""
    metrics.begin(scheduler)


@hook(
    f"{COMPONENTS}.pool_stats_observer.SchedulerPoolStatsObserver._get_token_info",
    ("self",),
    AFTER,
    until="the allocator reports usage",
)
def _token_info(stats: Any, observer: Any) -> Any:
    """Token usage is the share of the pool's bytes in use: with a pool that groups share, no
    count of tokens is full when memory is. Publishes `sglang:jenga_*` whenever SGLang publishes
    its own."""
    return metrics.with_metrics(stats, observer.tree_cache)


@hook(
    f"{INTERNAL_STATE}.get_internal_state",
    ("self", "recv_req"),
    AROUND,
    until="SGLang lets a plug-in ask its scheduler",
)
def _answer(original: Callable[..., Any], controller: Any, recv_req: Any) -> Any:
    """Answers questions about the pool, marked by the request's id: the only way from the HTTP
    process to the scheduler and back that needs no new message type."""
    if questions.is_question(recv_req.rid):
        return answers.answer(controller.scheduler, recv_req.rid)
    return original(controller, recv_req)


@hook(
    f"{INTERNAL_STATE}._add_memory_usage",
    ("self", "state"),
    AFTER,
    until="the pool can contribute to server info",
)
def _add_memory_usage(result: None, controller: Any, state: dict[str, Any]) -> None:
    """Puts Jenga's facts into `/server_info`."""
    allocator = controller.scheduler.token_to_kv_pool_allocator
    state["jenga"] = describe(allocator.get_kvcache()) | {"recounted": allocator.is_recounted}
