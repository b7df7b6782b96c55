"""The scheduler's answers to `jenga_sglang.questions`."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import GetInternalStateReqOutput
from sglang.srt.runtime_context import get_parallel

from jenga_sglang import questions
from jenga_sglang.adapter.cache.waiting import explain, queue_facts
from jenga_sglang.adapter.observe.report import describe
from jenga_sglang.adapter.sglang_views import SchedulerView
from jenga_sglang.core.stats import large_page_map

MAPS = ("map", "host_map")  # of the pool, and of host memory below it


def answer(scheduler: SchedulerView, question: str) -> GetInternalStateReqOutput:
    """The answer of this rank, with its number: ranks answer in any order. Reading changes nothing
    in the pool or the cache."""
    if question == questions.STATS:
        facts = stats(scheduler)
    else:
        facts = explain(scheduler, *questions.parse_explain(question))
    return GetInternalStateReqOutput(internal_state=facts | {"dp_rank": data_parallel_rank()})


def data_parallel_rank() -> int:
    """Of this scheduler among those that requests are shared out to: replicas of the model, or
    ranks of data-parallel attention."""
    return get_parallel().dp_rank or 0


def stats(scheduler: SchedulerView) -> dict[str, Any]:
    """Everything `/jenga/stats` shows; ``map`` is `core.stats.large_page_map`, as it is, and so is
    ``host_map`` where there is host memory below the pool."""
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    maps = [large_page_map(memory.large) for memory in pool.manager.memories]
    return describe(pool) | {
        "queue": queue_facts(scheduler),
        **dict(zip(MAPS, maps, strict=False)),
    }
