"""Models that people serve, tiny: Jenga's answers are Hugging Face's, token by token, and stock
SGLang's where it runs the model on a CPU.

Prompts branch and are longer than the windows, are cut into chunks, and meet a pool that evicts.
"""

import zlib
from pathlib import Path

import pytest
from e2e.answers import FLOAT32, Tolerance
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STATES,
    STOCK_STATES,
    absorb_latent_rows,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.engine import Job, Report, run_jobs
from e2e.hugging_face import token_logprobs
from e2e.models_table import HUGGING_FACE, STOCK, keep
from e2e.stream import Request, StreamShape, make_stream
from models.released import FULL, RELEASED, dependencies
from models.released import STATES as RECURRENT
from models.tiny import WINDOW, Architecture, write_model

from jenga_sglang.plan.model import read_model

SHAPE = StreamShape(num_requests=50, longest_prompt=300)
# One of each kind of layers and experts; the rest are long tests.
SAMPLE = ("gpt_oss", "gemma4_moe", "llama4", "qwen3_next", "deepseek_v3_moe", "nemotron_h_moe")
# Stock's torch backend reads no pool of windows, and neither sinks nor soft caps.
STOCK_RUNS = {*FULL, *RECURRENT, "afmoe"}
LOGPROB_ERROR = 1e-3
# Hugging Face computes a gated delta net in chunks, the CPU platform token by token.
LOOSER = {"qwen3_next": 3e-3, "qwen3_5_moe": 3e-3}
# Where a hit begins decides how a gated delta net rounds.
STOCK_TOLERANCE = {"qwen3_next": Tolerance(4e-4, 1e-5), "qwen3_5_moe": Tolerance(4e-4, 1e-5)}


OWN_CLASSES = {"jamba"}


def register_own_classes() -> None:
    """As SGLang does with SGLANG_EXTERNAL_MODEL_PACKAGE, which it reads while it is imported."""
    from sglang.srt.models.registry import ModelRegistry

    ModelRegistry.register("jenga_sglang.models")


def marked(name: str) -> object:
    return name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize("name", [marked(name) for name in RELEASED])
def test_every_token_is_hugging_faces(name: str, tmp_path: Path) -> None:
    kind = RELEASED[name]
    path = write_model(tmp_path / "model", kind, seed=zlib.crc32(name.encode()))
    requests = make_stream(SHAPE, seed=1)
    reports = run_jobs(jobs(name, path, requests), tmp_path)
    jenga = reports["jenga"]

    assert_outputs_vary(jenga.answers)
    assert_pool_was_used(kind, jenga)
    assert_plan_finds_the_same(kind, path, jenga)
    compared = [HUGGING_FACE]
    if "stock" in reports:
        tolerance = STOCK_TOLERANCE.get(name, FLOAT32)
        assert_same_answers(name, reports["stock"].answers, jenga.answers, tolerance)
        compared.append(STOCK)
    limit = LOOSER.get(name, LOGPROB_ERROR)
    for request, answer in list(zip(requests, jenga.answers, strict=True))[::3]:
        likeliest, logprobs = token_logprobs(path, request.prompt, answer.tokens, kind.sees_more)
        assert likeliest == answer.tokens
        error = max(abs(a - b) for a, b in zip(logprobs, answer.logprobs, strict=True))
        assert error < limit, error
    keep(name, path, jenga.state, compared)


def jobs(name: str, path: Path, requests: list[Request]) -> dict[str, Job]:
    kind = RELEASED[name]
    flags = server_flags(path, 16) | kind.flags | (STATES if kind.has_states else {})
    env = EXACT_STATES if kind.has_states else {}
    prepare = register_own_classes if name in OWN_CLASSES else absorb_latent_rows
    jenga = flags | {"memory_backend": "jenga"}
    found = {"jenga": Job(jenga, requests, env=POISON | env, prepare=prepare)}
    if name in STOCK_RUNS:
        stock = flags | (STOCK_STATES if kind.has_states else {"memory_backend": "default"})
        found["stock"] = Job(stock, requests, env=env, prepare=prepare)
    return found


def assert_pool_was_used(kind: Architecture, jenga: Report) -> None:
    """Its groups are those of the layers; each lost pages, holds none, and there were hits."""
    groups = jenga.state["groups"]
    assert sorted(g["dependency"] for g in groups) == sorted(dependencies(kind))
    for group in groups:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group
    assert jenga.cached_tokens > 500


def assert_plan_finds_the_same(kind: Architecture, path: Path, jenga: Report) -> None:
    """`jenga plan` reads fields of the config, the server the loaded model. They differ by the
    token more that some classes read."""
    longer = {f"window {WINDOW}": f"window {WINDOW + kind.sees_more}"}
    planned = {
        (longer.get(str(s.dependency), str(s.dependency)), len(s.layers), s.bytes_per_token)
        for s in read_model(path).specs
    }
    groups = jenga.state["groups"]
    assert planned == {(g["dependency"], g["layers"], g["bytes_per_token"]) for g in groups}
