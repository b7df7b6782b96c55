"""Jenga gives stock SGLang's answers: a sample per architecture, schedulers in this machine's
processes, pools so small that prefixes are evicted and requests retracted."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import compare
from e2e.engine import Report
from e2e.stream import Request, StreamShape, make_stream
from models.tiny import ARCHITECTURES, MAX_LENGTH, WINDOW

SHAPE = StreamShape(num_requests=70, longest_prompt=400)
POOL_TOKENS = 1024
CHUNK_TOKENS = 128
POISON = {"JENGA_POISON_FREED": "1"}

CASES = [
    # architecture, page size, environment
    ("llama", 16, {}),
    ("mistral", 16, POISON),
    ("ministral", 16, {}),
    ("gemma3", 16, POISON),
    ("cohere2", 16, {}),
    ("olmo3", 16, POISON),
    ("gemma3", 1, {}),
    ("cohere2", 64, POISON),
]


@pytest.mark.parametrize(("architecture", "page_size", "env"), CASES)
def test_every_answer_is_stocks(
    architecture: str,
    page_size: int,
    env: dict[str, str],
    tiny_model: Callable[[str], Path],
    run_both: Callable[..., tuple[Report, Report]],
) -> None:
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(tiny_model(architecture), page_size)
    stock, jenga = run_both(flags, requests, env=env)

    result = compare(stock.answers, jenga.answers)
    print(result)
    assert not result.differences, str(result)
    assert len(result.ties) <= len(requests) // 100
    if result.ties:
        warnings.warn(f"{architecture}: {result}", stacklevel=1)
    assert_outputs_vary(jenga)
    assert_memory_was_short(jenga.state, jenga.retractions, ARCHITECTURES[architecture].num_groups)
    assert min(stock.cached_tokens, jenga.cached_tokens) > 0


def server_flags(model: Path, page_size: int) -> dict[str, Any]:
    return {
        "model_path": str(model),
        "dtype": "float32",
        "page_size": page_size,
        "chunked_prefill_size": CHUNK_TOKENS,
        "max_total_tokens": POOL_TOKENS,
        "context_length": MAX_LENGTH,
        "schedule_conservativeness": 0.1,
    }


def assert_outputs_vary(report: Report) -> None:
    """Loops of one token would hide what memory got wrong."""
    long = [answer.tokens for answer in report.answers if len(answer.tokens) >= 40]
    assert len(long) >= 10
    assert sum(len(set(tokens[:40])) for tokens in long) / len(long) > 8
    assert len({tuple(tokens[:20]) for tokens in long}) > len(long) // 2


def assert_memory_was_short(state: dict[str, Any], retractions: int, num_groups: int) -> None:
    """Every group lost cached pages, requests were retracted, and nothing is still held."""
    assert len(state["groups"]) == num_groups
    for group in state["groups"]:
        assert group["evicted_pages"] > 0, group
        assert group["used_bytes"] == 0, group
    assert retractions > 0


def test_the_stream_has_every_kind_of_prompt() -> None:
    requests = make_stream(SHAPE, seed=1)
    lengths = [len(request.prompt) for request in requests]
    assert min(lengths) == 1
    assert max(lengths) > 7 * WINDOW
    assert longest_shared_prefix(requests) > 2 * WINDOW
    assert any(request.namespace for request in requests)


def longest_shared_prefix(requests: list[Request]) -> int:
    """The longest prefix that two different prompts share and then leave."""
    prompts = sorted(request.prompt for request in requests)
    shared = 0
    for a, b in zip(prompts, prompts[1:], strict=False):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
        shared = max(shared, same)
    return shared
