"""The scheduler's answers to `jenga_sglang.questions`."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import GetInternalStateReqOutput

from jenga_sglang import questions
from jenga_sglang.adapter.report import describe
from jenga_sglang.adapter.waiting import explain, queue_facts
from jenga_sglang.core.stats import large_page_map


def answer(scheduler: Any, question: str) -> GetInternalStateReqOutput:
    """The answer, or ``{"error": ...}``; reading changes nothing in the pool or the cache."""
    if question == questions.STATS:
        return GetInternalStateReqOutput(internal_state=stats(scheduler))
    prompt_tokens, max_new_tokens = questions.parse_explain(question)
    return GetInternalStateReqOutput(
        internal_state=explain(scheduler, prompt_tokens, max_new_tokens)
    )


def stats(scheduler: Any) -> dict[str, Any]:
    """Everything `/jenga/stats` shows; ``map`` is `core.stats.large_page_map`, as it is."""
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    return describe(pool) | {
        "queue": queue_facts(scheduler),
        "map": large_page_map(pool.manager),
    }
