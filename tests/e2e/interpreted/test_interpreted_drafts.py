"""Drafts through kernels change no answer, and as many are accepted as in plain torch."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from e2e.checks import POISON, assert_same_answers, server_flags
from e2e.drafting import NGRAM, accepted, overlapping
from e2e.engine import Job, run_jobs
from e2e.interpreted.test_interpreted_answers import PREPARE
from e2e.oracle import oracle_of
from e2e.stream import Request, StreamShape, make_stream
from e2e.test_draft_models import standalone
from models.tiny_draft import make_eagle_head

FLAGS: dict[str, dict[str, Any]] = {
    "flashinfer": {},
    "triton": {"triton_attention_num_kv_splits": 1},
}
SHAPES = {
    "flashinfer": StreamShape(num_requests=8, longest_prompt=200, longest_answer=80),
    "triton": StreamShape(num_requests=4, longest_prompt=60, longest_answer=24),
}


def twice(backend: str) -> list[Request]:
    """Requests that come twice: the second time, whole answers can be foreseen."""
    return 2 * make_stream(SHAPES[backend], seed=1)


def prepared(backend: str, *more: Callable[[], None]) -> Callable[[], None]:
    return partial(do_each, [step for step in (PREPARE[backend], *more) if step is not None])


def do_each(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


@pytest.mark.parametrize(
    ("backend", "architecture", "drafts"),
    [
        ("flashinfer", "gemma3", 20),
        pytest.param("triton", "gemma3", 5, marks=pytest.mark.long),
    ],
)
def test_chains_of_n_grams(
    backend: str,
    architecture: str,
    drafts: int,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """In a pool so small that FlashInfer's requests evict pages for their tails; overlapped."""
    requests = twice(backend)
    plain = {**server_flags(tiny_model(architecture), 16), "max_total_tokens": 400}
    ours = {**plain, **NGRAM, **FLAGS[backend], "speculative_num_draft_tokens": drafts}
    ours |= {"memory_backend": "jenga", "attention_backend": backend}
    prepare = prepared(backend, overlapping)
    reports = run_jobs(
        {"plain": Job(plain, requests), "jenga": Job(ours, requests, env=POISON, prepare=prepare)},
        tmp_path,
    )
    answers = reports["jenga"].answers
    assert_same_answers(f"{architecture}, n-grams", reports["plain"].answers, answers)
    print(accepted(answers), reports["jenga"].retractions, reports["jenga"].cached_tokens)
    assert len(accepted(answers)) >= min(drafts, 17), "no step accepted more than a page"
    assert reports["jenga"].cached_tokens > 0
    if backend == "flashinfer":
        for group in reports["jenga"].state["groups"]:
            assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group


@pytest.mark.parametrize("backend", ["flashinfer", pytest.param("triton", marks=pytest.mark.long)])
def test_the_target_as_its_own_draft(
    backend: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """One request at a time: each step accepts what it does in plain torch, so the draft's rows are
    the same."""
    model = tiny_model("gemma3")
    requests = sorted(make_stream(SHAPES[backend], seed=1), key=lambda r: r.max_new_tokens)[-3:]
    flags = {**server_flags(model, 16), "max_total_tokens": 1024, **standalone(model, 4)}
    flags |= {"memory_backend": "jenga"}
    kernels = {**flags, **FLAGS[backend], "attention_backend": backend}
    prepare = prepared(backend)
    reports = run_jobs(
        {
            "torch": Job(flags, requests, concurrency=1),
            "kernels": Job(kernels, requests, concurrency=1, env=POISON, prepare=prepare),
        },
        tmp_path,
    )
    expected, answers = reports["torch"].answers, reports["kernels"].answers
    assert_same_answers("gemma3, its own draft", expected, answers)
    assert [a.accepted for a in answers] == [a.accepted for a in expected]
    print(accepted(answers), reports["kernels"].cached_tokens)
    assert len(accepted(answers)) == 5, "no step accepted all"


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["STANDALONE", "EAGLE", "EAGLE3"])
def test_every_number_of_drafts_is_accepted(
    algorithm: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Drafts that are right as often as was planned, of several requests at once."""
    target = tiny_model("llama")
    is_third = algorithm == "EAGLE3"
    head = target
    if algorithm != "STANDALONE":
        head = make_eagle_head(tmp_path / "head", target, is_third=is_third)
    requests = make_stream(SHAPES["flashinfer"], seed=1)
    plain = {**server_flags(target, 16), "max_total_tokens": 640}
    known = run_jobs({"plain": Job(plain, requests)}, tmp_path)["plain"].answers
    oracle = oracle_of(requests, known, 4)
    flags = {**plain, **standalone(head, 4), "speculative_algorithm": algorithm}
    flags |= {"memory_backend": "jenga", "attention_backend": "flashinfer"}
    prepare = prepared("flashinfer", oracle.install)
    report = run_jobs({"jenga": Job(flags, requests, env=POISON, prepare=prepare)}, tmp_path)
    answers = report["jenga"].answers
    assert_same_answers(f"llama, {algorithm}", known, answers)
    assert min(accepted(answers)) > 0 and len(accepted(answers)) == 5
