"""`--jenga-window config`: the window of the config, which SGLang's class ignores, as Hugging Face
applies it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.checks import POISON, assert_outputs_vary, server_flags
from e2e.engine import Job, run_jobs
from e2e.hugging_face import greedy_tokens
from e2e.stream import StreamShape, make_stream
from models.tiny import WINDOW

SHAPE = StreamShape(num_requests=50, longest_prompt=300)


@pytest.mark.parametrize(
    ("architecture", "groups"),
    [
        pytest.param("mistral", {f"window {WINDOW}": 4}, marks=pytest.mark.long),
        ("qwen2", {"full": 2, f"window {WINDOW}": 2}),
        ("phi3", {f"window {WINDOW}": 4}),
    ],
)
def test_answers_are_hugging_faces(
    architecture: str,
    groups: dict[str, int],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = tiny_model(architecture)
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(path, 16) | {"memory_backend": "jenga"}
    jobs = {
        choice: Job(flags | {"jenga_window": choice}, requests, env=POISON)
        for choice in ("config", "model")
    }
    reports = run_jobs(jobs, tmp_path)
    answers = reports["config"].answers
    assert_outputs_vary(answers)
    found = {g["dependency"]: g["layers"] for g in reports["config"].state["groups"]}
    assert found == groups
    assert [g["dependency"] for g in reports["model"].state["groups"]] == ["full"]
    assert [a.tokens for a in answers] != [a.tokens for a in reports["model"].answers]
    for request, given in list(zip(requests, answers, strict=True))[::10]:
        assert greedy_tokens(path, request.prompt, len(given.tokens)) == given.tokens
