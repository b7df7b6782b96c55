"""Two real servers, stock and Jenga, give the same answers to 2,000 requests per architecture."""

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import compare
from e2e.client import ask
from e2e.engine import ENVIRONMENT
from e2e.stream import StreamShape, make_stream
from e2e.test_same_answers import (
    POISON,
    assert_memory_was_short,
    server_flags,
)
from models.tiny import ARCHITECTURES

SHAPE = StreamShape(num_requests=2000, longest_prompt=600)
POISONED = ("mistral", "gemma3", "olmo3")
# Long enough for an idle scheduler to run its leak check, which ends it when something leaked.
IDLE_SECONDS = 2


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_answer_is_stocks(
    architecture: str, tiny_model: Callable[[str], Path], start_server: Callable[..., Any]
) -> None:
    requests = make_stream(SHAPE, seed=2)
    flags = command_line(server_flags(tiny_model(architecture), page_size=16))
    env = ENVIRONMENT | (POISON if architecture in POISONED else {})
    with ThreadPoolExecutor(2) as threads:
        servers = list(
            threads.map(
                lambda backend: start_server(*flags, "--memory-backend", backend, env=env),
                ("default", "jenga"),
            )
        )
        stock, jenga = threads.map(lambda server: ask(server, requests), servers)

    result = compare(stock, jenga)
    print(result)
    assert not result.differences, str(result)
    assert len(result.ties) <= len(requests) // 100
    if result.ties:
        warnings.warn(f"{architecture}: {result}", stacklevel=1)
    time.sleep(IDLE_SECONDS)
    state = servers[1].get("/server_info")["internal_states"][0]["jenga"]
    retractions = sum(answer.retractions for answer in jenga)
    assert_memory_was_short(state, retractions, ARCHITECTURES[architecture].num_groups)
    for server in servers:
        assert server.process.poll() is None
        assert "leak detected" not in server.log()


def command_line(flags: dict[str, Any]) -> list[str]:
    """Fields of `ServerArgs` as the flags of `launch_server`."""
    words = []
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words
