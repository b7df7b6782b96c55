"""`GET /jenga`, `/jenga/stats` and `/jenga/explain`, beside SGLang's own routes."""

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from collections.abc import Callable
from operator import itemgetter
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, JSONResponse
from sglang.srt.managers.io_struct import GetInternalStateReq

from jenga_sglang import questions
from jenga_sglang.web.page import page

ANSWER_SECONDS = 20.0
DEFAULT_NEW_TOKENS = 128  # as SGLang's own default

Answers = list[dict[str, Any]]
Rank = Annotated[int | None, Query(ge=0)]


class Scheduler:
    """Asks the scheduler through SGLang's own channel for its internal state."""

    def __init__(self, global_state: Callable[[], Any]) -> None:
        self._global_state = global_state
        self._asked: dict[str, asyncio.Task[Answers]] = {}

    async def ask(self, question: str) -> Answers:
        """The answer of every data-parallel rank, in their order. Raises ``TimeoutError``.

        Who asks while the same question is under way shares its answers. The request itself is
        never given up: its late answer would reach whoever asks next.
        """
        task = self._asked.get(question)
        if task is None:
            task = self._asked[question] = asyncio.ensure_future(self._send(question))
            task.add_done_callback(lambda _: self._asked.pop(question))
        return await asyncio.wait_for(asyncio.shield(task), ANSWER_SECONDS)

    async def _send(self, question: str) -> Answers:
        tokenizer = self._global_state().tokenizer_manager
        tokenizer.auto_create_handle_loop()
        replies = await tokenizer.get_internal_state_communicator(GetInternalStateReq(rid=question))
        return sorted((reply.internal_state for reply in replies), key=itemgetter("dp_rank"))

    @property
    def model(self) -> str:
        return str(self._global_state().tokenizer_manager.served_model_name)


def add_routes(app: FastAPI, global_state: Callable[[], Any]) -> None:
    """Add the three routes; SGLang's key, where it has one, guards them like all others."""
    scheduler = Scheduler(global_state)

    @app.get("/jenga", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page())

    @app.get("/jenga/stats")
    async def stats(dp_rank: Rank = None) -> JSONResponse:
        """The pool, its groups, the queue and the map of large pages."""
        return await _reply(scheduler, questions.STATS, dp_rank)

    @app.get("/jenga/explain")
    async def explain(
        prompt_tokens: Annotated[int, Query(ge=0)],
        max_new_tokens: Annotated[int, Query(ge=0)] = DEFAULT_NEW_TOKENS,
        dp_rank: Rank = None,
    ) -> JSONResponse:
        """Whether and why a prompt of this length would be admitted now, nothing of it cached."""
        question = questions.explain(prompt_tokens, max_new_tokens)
        return await _reply(scheduler, question, dp_rank)


async def _reply(scheduler: Scheduler, question: str, dp_rank: int | None) -> JSONResponse:
    """One rank's answer, of the only one or of ``dp_rank``; else those of all, under ``ranks``."""
    try:
        answers = await scheduler.ask(question)
    except TimeoutError:
        error = f"the scheduler did not answer within {ANSWER_SECONDS:.0f} s: it is busy or stuck"
        return JSONResponse({"error": error}, status_code=504)
    number = len(answers)
    if dp_rank is not None and dp_rank >= number:
        error = f"dp_rank {dp_rank}: the server has {number} data-parallel ranks, counted from 0"
        return JSONResponse({"error": error}, status_code=422)
    about = {"model": scheduler.model, "time_seconds": time.time(), "data_parallel_ranks": number}
    chosen = answers if dp_rank is None else [answers[dp_rank]]
    ranks = [_packed(answer) | about for answer in chosen]
    body = ranks[0] if len(ranks) == 1 else about | {"ranks": ranks}
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


def _packed(answer: dict[str, Any]) -> dict[str, Any]:
    """``answer`` as JSON can have it; others may share it, so it stays as it is."""
    maps = {name: answer[name] for name in ("map", "host_map") if name in answer}
    return answer | {
        name: base64.b64encode(zlib.compress(cells, 1)).decode() for name, cells in maps.items()
    }
