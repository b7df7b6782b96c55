"""Jenga gives stock SGLang's answers: a sample of requests per architecture, in pools so small
that prefixes are evicted and requests retracted."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from e2e.checks import (
    POISON,
    assert_memory_was_short,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.engine import Report
from e2e.models_table import STOCK, keep
from e2e.stream import Request, StreamShape, make_stream
from models.tiny import ARCHITECTURES, WINDOW

SHAPE = StreamShape(num_requests=70, longest_prompt=400)

CASES = [
    # architecture, page size (None: the default), environment
    ("llama", None, {}),
    pytest.param("mistral", 16, POISON, marks=pytest.mark.long),
    ("ministral", 16, {}),
    ("gemma3", None, POISON),
    pytest.param("cohere2", 16, {}, marks=pytest.mark.long),
    ("olmo3", 16, POISON),
    ("gemma3", 1, {}),
    ("cohere2", 64, POISON),
]
DEFAULT_PAGE_SIZES = {"llama": 8, "gemma3": 16}


@pytest.mark.parametrize(("architecture", "page_size", "env"), CASES)
def test_every_answer_is_stocks(
    architecture: str,
    page_size: int | None,
    env: dict[str, str],
    tiny_model: Callable[[str], Path],
    run_both: Callable[..., tuple[Report, Report]],
) -> None:
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(tiny_model(architecture), page_size)
    stock, jenga = run_both(flags, requests, env=env)

    assert jenga.state["page_size"] == (page_size or DEFAULT_PAGE_SIZES[architecture])
    assert_same_answers(architecture, stock.answers, jenga.answers)
    assert_outputs_vary(jenga.answers)
    assert_memory_was_short(jenga.state, jenga.answers, ARCHITECTURES[architecture].num_groups)
    assert min(stock.cached_tokens, jenga.cached_tokens) > 0
    if page_size in (None, 16):  # once for each
        keep(architecture, tiny_model(architecture), jenga.state, [STOCK])


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
    for a, b in pairwise(prompts):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
        shared = max(shared, same)
    return shared
