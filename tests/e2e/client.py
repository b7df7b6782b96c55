"""Sends a stream to a server over HTTP, with a fixed number of requests in flight."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from e2e.answers import Answer
from e2e.stream import Request


class Server(Protocol):
    """Something that answers JSON with JSON."""

    def post(self, path: str, body: dict[str, Any], timeout: float) -> Any: ...


def ask(
    server: Server, requests: Sequence[Request], *, concurrency: int = 30, timeout: float = 600
) -> list[Answer]:
    """Return the answers in the order of the requests; an HTTP error raises."""

    def one(request: Request) -> Answer:
        return read_answer(server.post("/generate", body(request), timeout))

    with ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(one, requests))


def body(request: Request) -> dict[str, Any]:
    """A greedy /generate request that asks for the two likeliest tokens at each place."""
    return {
        "input_ids": request.prompt,
        "extra_key": request.namespace,
        "return_logprob": True,
        "top_logprobs_num": 2,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": request.max_new_tokens,
            "ignore_eos": request.ignore_eos,
        },
    }


def read_answer(reply: dict[str, Any]) -> Answer:
    meta = reply["meta_info"]
    likeliest = [[(top[0], top[1]) for top in tops] for tops in meta["output_top_logprobs"]]
    return Answer(
        tokens=reply["output_ids"],
        logprobs=[entry[0] for entry in meta["output_token_logprobs"]],
        likeliest=likeliest,
        cached_tokens=meta["cached_tokens"],
        retractions=meta["num_retractions"],
        finish_reason=meta["finish_reason"]["type"],
    )
