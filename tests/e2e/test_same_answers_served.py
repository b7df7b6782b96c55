"""Two real servers, stock and Jenga, give the same answers to 2,000 requests per architecture."""

import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import compare
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STATES,
    STOCK_STATES,
    assert_memory_was_short,
    assert_outputs_vary,
    assert_same_answers,
    command_line,
    server_flags,
)
from e2e.client import ask
from e2e.engine import ENVIRONMENT
from e2e.results import record
from e2e.stream import StreamShape, make_stream
from models.tiny import ARCHITECTURES

SHAPE = StreamShape(num_requests=2000, longest_prompt=600)
ATTENTION_ONLY = ("llama", "mistral", "ministral", "gemma3", "cohere2", "olmo3", "minicpm3")
WITH_STATES = ("lfm2", "falcon_h1")
POISONED = ("mistral", "gemma3", "olmo3", "lfm2", "falcon_h1")
# Long enough for an idle scheduler to run its leak check, which ends it when something leaked.
IDLE_SECONDS = 2


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("architecture", ATTENTION_ONLY + WITH_STATES)
def test_every_answer_is_stocks(
    architecture: str, tiny_model: Callable[[str], Path], start_server: Callable[..., Any]
) -> None:
    requests = make_stream(SHAPE, seed=2)
    kind = ARCHITECTURES[architecture]
    flags = server_flags(tiny_model(architecture), page_size=16)
    env = ENVIRONMENT | (POISON if architecture in POISONED else {})
    each = {"stock": {"memory_backend": "default"}, "jenga": {"memory_backend": "jenga"}}
    if architecture in WITH_STATES:
        flags, env = flags | STATES, env | EXACT_STATES
        each["stock"] = STOCK_STATES
    with ThreadPoolExecutor(2) as threads:
        servers = list(
            threads.map(
                lambda own: start_server(*command_line(flags | own), env=env), each.values()
            )
        )
        stock, jenga = threads.map(lambda server: ask(server, requests), servers)
    time.sleep(IDLE_SECONDS)
    state = server_info(servers[1])["internal_states"][0]["jenga"]
    for server in servers:
        assert server.process.poll() is None, server.log()[-4000:]
        assert "leak detected" not in server.log()
        stop(server)

    record(
        kind.model,
        compare(stock, jenga),
        {
            "groups": [group["name"] for group in state["groups"]],
            "evicted_pages": sum(group["evicted_pages"] for group in state["groups"]),
            "stock_retractions": sum(answer.retractions for answer in stock),
            "jenga_retractions": sum(answer.retractions for answer in jenga),
            "poisoned": architecture in POISONED,
        },
    )
    assert_same_answers(architecture, stock, jenga)
    assert_outputs_vary(jenga)
    assert_memory_was_short(state, jenga, kind.num_groups)


def server_info(server: Any) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/server_info", timeout=60) as reply:
        return json.load(reply)


def stop(server: Any) -> None:
    """End a server before its fixture would: never more than two at once."""
    server.process.terminate()
    server.process.wait(60)
