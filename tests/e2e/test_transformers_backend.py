"""Models that SGLang serves through its Transformers backend: its attention layers are in no
module, and their groups are found all the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.checks import (
    POISON,
    assert_memory_was_short,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.engine import Report
from e2e.hugging_face import greedy_tokens
from e2e.models_table import HUGGING_FACE, STOCK, keep
from e2e.stream import StreamShape, make_stream
from models.tiny import ARCHITECTURES, WINDOW

SHAPE = StreamShape(num_requests=50, longest_prompt=300)
ASKED_FOR = {"model_impl": "transformers"}


@pytest.mark.parametrize(
    ("architecture", "asked", "dependencies"),
    [
        ("smollm3", {}, ["full"]),
        pytest.param("llama", ASKED_FOR, ["full"], marks=pytest.mark.long),
        # The backend's windows are of one token more than the config's.
        pytest.param(
            "cohere2", ASKED_FOR, [f"window {WINDOW + 1}", "full"], marks=pytest.mark.long
        ),
    ],
)
def test_every_answer_is_stocks(
    architecture: str,
    asked: dict[str, Any],
    dependencies: list[str],
    tiny_model: Callable[[str], Path],
    run_both: Callable[..., tuple[Report, Report]],
) -> None:
    path = tiny_model(architecture)
    requests = make_stream(SHAPE, seed=1)
    stock, jenga = run_both(server_flags(path, 16) | asked, requests, env=POISON)

    assert_same_answers(architecture, stock.answers, jenga.answers)
    assert_outputs_vary(jenga.answers)
    assert_memory_was_short(jenga.state, jenga.answers, ARCHITECTURES[architecture].num_groups)
    assert [group["dependency"] for group in jenga.state["groups"]] == dependencies
    assert jenga.cached_tokens > 500
    if dependencies == ["full"]:
        for request, given in list(zip(requests, jenga.answers, strict=True))[::9]:
            assert greedy_tokens(path, request.prompt, len(given.tokens)) == given.tokens
    if not asked:
        keep(architecture, path, jenga.state, [STOCK, HUGGING_FACE])
