"""Models with recurrent layers: Jenga's answers are stock's, Hugging Face's, and a cold run's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from e2e.engine import Job, run_jobs
from e2e.hugging_face import greedy_tokens
from e2e.models_table import COLD, HUGGING_FACE, STOCK, keep
from e2e.stream import Request, StreamShape, make_stream
from models.tiny import ARCHITECTURES

SHAPE = StreamShape(num_requests=70, longest_prompt=400)
# Where a hit begins decides how a gated delta net rounds. Stock's own logprobs, with and without
# its prefix cache, lie up to 1.7e-4 apart (README.md): its tokens must be equal all the same.
TOLERANCES = {"qwen3_5": Tolerance(4e-4, 1e-5)}


def some(*architectures: str, long: tuple[str, ...]) -> Any:
    """Models for `make test`, and those for `make test-long`."""
    marked = [pytest.param(name, marks=pytest.mark.long) for name in long]
    return pytest.mark.parametrize("architecture", [*architectures, *marked])


@some("lfm2", "qwen3_5", "falcon_mamba", long=("falcon_h1", "kimi_linear"))
def test_every_answer_is_stocks_and_hits_change_nothing(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tiny_model(architecture)
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(path, 16) | STATES
    jenga = flags | {"memory_backend": "jenga"}
    reports = run_jobs(
        {
            "stock": Job(
                flags | STOCK_STATES, requests, env=EXACT_STATES, prepare=absorb_latent_rows
            ),
            "jenga": Job(jenga, requests, env=EXACT_STATES | POISON),
            "cold": Job(jenga | {"disable_radix_cache": True}, requests, env=EXACT_STATES),
        },
        tmp_path,
    )
    ours, tolerance = reports["jenga"], TOLERANCES.get(architecture, FLOAT32)
    for name in ("stock", "cold"):
        title = f"{architecture}, {name}"
        assert_same_answers(title, reports[name].answers, ours.answers, tolerance)
    assert_outputs_vary(ours.answers)
    assert ours.cached_tokens > 500 and reports["cold"].cached_tokens == 0
    assert len(ours.state["groups"]) == ARCHITECTURES[architecture].num_groups
    for group in ours.state["groups"]:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group
    assert ours.state["saved_snapshots"] > 50
    for request, given in list(zip(requests, ours.answers, strict=True))[::9]:
        assert greedy_tokens(path, request.prompt, len(given.tokens)) == given.tokens
    keep(architecture, path, ours.state, [STOCK, HUGGING_FACE, COLD])


@some("falcon_h1", long=("lfm2", "qwen3_5"))
def test_the_next_turn_goes_on_from_the_answer(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """A prompt of 24 tokens and an answer of 30, of which the last is never computed: what moves
    along with it every page has got to 48 tokens."""
    path = tiny_model(architecture)
    prompts = [[seed * 7 + n % (9 + seed) for n in range(24)] for seed in (1, 2)]
    answers = [greedy_tokens(path, prompt, 30) for prompt in prompts]
    nexts = [p + a + [5, 6, 7] for p, a in zip(prompts, answers, strict=True)]
    turns = [Request(prompt, 30, ignore_eos=True) for prompt in prompts]
    turns += [Request(prompt, 10, ignore_eos=True) for prompt in nexts]
    flags = server_flags(path, 16) | {"memory_backend": "jenga"}
    env = EXACT_STATES | POISON | {"JENGA_POLICIES": "answer_state_tokens=16"}
    job = Job(flags, turns, concurrency=2, env=env)
    report = run_jobs({"jenga": job}, tmp_path)["jenga"]
    assert [answer.tokens for answer in report.answers[:2]] == answers
    assert [answer.cached_tokens for answer in report.answers] == [0, 0, 48, 48]
    for prompt, answer in zip(nexts, report.answers[2:], strict=True):
        assert answer.tokens == greedy_tokens(path, prompt, 10)


@some("qwen3_5", long=("lfm2", "falcon_h1", "falcon_mamba"))
def test_prompts_and_decodes_in_one_batch(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """With `--enable-mixed-chunk` the states of requests that decode move on beside chunks of
    prompts, and checkpoints are saved of both."""
    path = tiny_model(architecture)
    requests = make_stream(SHAPE, seed=2)
    flags = server_flags(path, 16) | STATES | {"memory_backend": "jenga"}
    env = EXACT_STATES | POISON
    mixed = Job(flags | {"enable_mixed_chunk": True}, requests, env=env, logprobs=False)
    apart = Job(flags, requests, env=env, logprobs=False)
    reports = run_jobs({"mixed": mixed, "apart": apart}, tmp_path)
    ours = reports["mixed"]
    assert ours.batches["MIXED"] > 20 and not reports["apart"].batches["MIXED"]
    assert ours.cached_tokens > 500 and ours.state["saved_snapshots"] > 50
    tokens = [answer.tokens for answer in ours.answers]
    assert tokens == [answer.tokens for answer in reports["apart"].answers]
    for request, given in list(zip(requests, tokens, strict=True))[::9]:
        assert greedy_tokens(path, request.prompt, len(given)) == given
