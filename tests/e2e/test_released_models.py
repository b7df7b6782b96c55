"""Models that people serve, tiny: Jenga's answers are Hugging Face's, token by token.

Stock SGLang runs few of them on a CPU. Prompts branch and are longer than the windows, are cut into
chunks, and meet a pool that evicts.
"""

from pathlib import Path

import pytest
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STATES,
    assert_outputs_vary,
    server_flags,
)
from e2e.engine import Job, run_jobs
from e2e.hugging_face import token_logprobs
from e2e.stream import StreamShape, make_stream
from models.released import DEPENDENCIES, RELEASED
from models.tiny import write_model

SHAPE = StreamShape(num_requests=50, longest_prompt=300)
# One of each kind of layers and experts; the rest are long tests.
SAMPLE = ("gpt_oss", "gemma4_moe", "llama4", "qwen3_next", "deepseek_v3_moe")
LOGPROB_ERROR = 1e-3
# Hugging Face computes a gated delta net in chunks, the CPU platform token by token.
LOOSER = {"qwen3_next": 3e-3}


def marked(name: str) -> object:
    return name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize("name", [marked(name) for name in RELEASED])
def test_every_token_is_hugging_faces(name: str, tmp_path: Path) -> None:
    kind = RELEASED[name]
    path = write_model(tmp_path / "model", kind, seed=list(RELEASED).index(name))
    has_states = not set(kind.layers).isdisjoint("cd")
    flags = server_flags(path, 16) | {"memory_backend": "jenga"} | (STATES if has_states else {})
    requests = make_stream(SHAPE, seed=1)
    job = Job(flags, requests, env=POISON | (EXACT_STATES if has_states else {}))
    jenga = run_jobs({"jenga": job}, tmp_path)["jenga"]

    assert_outputs_vary(jenga.answers)
    assert len(jenga.state["groups"]) == kind.num_groups
    for group in jenga.state["groups"]:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group
    if name in DEPENDENCIES:
        assert [g["dependency"] for g in jenga.state["groups"]] == DEPENDENCIES[name]
    assert jenga.cached_tokens > 500
    for request, answer in list(zip(requests, jenga.answers, strict=True))[::3]:
        likeliest, logprobs = token_logprobs(path, request.prompt, answer.tokens)
        assert likeliest == answer.tokens
        error = max(abs(a - b) for a, b in zip(logprobs, answer.logprobs, strict=True))
        assert error < LOOSER.get(name, LOGPROB_ERROR), error
