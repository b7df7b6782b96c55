"""Drafts change nothing: with speculative decoding, stock SGLang and Jenga give the answers that
stock gives without, and both accept the same drafts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.checks import (
    POISON,
    absorb_latent_rows,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.drafting import NGRAM, STOP_TOKENS, accepted, drafting_stream, overlapping
from e2e.engine import Job, Report, run_jobs
from models.released import RELEASED
from models.tiny import write_model

# architecture, page size, drafts at most, continuations of one n-gram, overlapped
CASES = [
    ("llama", 16, 4, 1, False),
    ("gemma3", 16, 20, 1, True),
    ("gemma3", 1, 12, 4, False),
    pytest.param("gemma3", 1, 8, 1, False, marks=pytest.mark.long),
    pytest.param("llama", 1, 2, 1, True, marks=pytest.mark.long),
    pytest.param("cohere2", 64, 6, 1, False, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("architecture", "page_size", "drafts", "breadth", "overlap"), CASES)
def test_ngram_drafts_change_no_answer(
    architecture: str,
    page_size: int,
    drafts: int,
    breadth: int,
    overlap: bool,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    plain = {
        **server_flags(tiny_model(architecture), page_size),
        "max_total_tokens": 640,
        "max_running_requests": 12,
    }
    drafting = {
        **plain,
        **NGRAM,
        "speculative_num_draft_tokens": drafts,
        "speculative_ngram_max_bfs_breadth": breadth,
    }
    ours: dict[str, Any] = {**drafting, "memory_backend": "jenga"}
    prepare = overlapping if overlap else None
    requests = drafting_stream()
    reports = run_jobs(
        {
            "plain": Job(plain, requests),
            "stock": Job(drafting, requests, prepare=prepare),
            "jenga": Job(ours, requests, env=POISON, prepare=prepare),
        },
        tmp_path,
    )
    check(architecture, reports, drafts, page_size)


def check(name: str, reports: dict[str, Report], drafts: int, page_size: int) -> None:
    answers = {kind: report.answers for kind, report in reports.items()}
    assert_same_answers(f"{name}, stock drafts", answers["plain"], answers["stock"])
    assert_same_answers(f"{name}, Jenga drafts", answers["plain"], answers["jenga"])
    assert_outputs_vary(answers["jenga"][: len(answers["jenga"]) // 2])  # the others are equal
    ends = [(a.tokens[-1], len(a.tokens)) for a in answers["jenga"] if a.finish_reason == "stop"]
    assert sum(token in STOP_TOKENS and count > 1 for token, count in ends) >= 5
    for kind in ("stock", "jenga"):
        print(kind, accepted(answers[kind]), reports[kind].retractions, reports[kind].cached_tokens)
    # The same requests in as many bytes.
    assert 0 < reports["jenga"].retractions <= reports["stock"].retractions
    assert reports["jenga"].cached_tokens > 0
    steps = accepted(answers["jenga"])
    assert steps[0] > 0
    assert len(steps) >= min(drafts, page_size + 1), "no step accepted more than a page"
    for group in reports["jenga"].state["groups"]:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group


def test_ngram_drafts_over_latent_rows(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """MLA: of an accepted draft's row one tensor moves. SGLang's own torch attention does not
    verify over such rows, so this is compared with answers without drafts alone."""
    plain = {**server_flags(tiny_model("minicpm3"), 16), "max_running_requests": 12}
    ours = {**plain, **NGRAM, "speculative_num_draft_tokens": 5, "memory_backend": "jenga"}
    requests = drafting_stream()
    reports = run_jobs(
        {
            "plain": Job(plain, requests, prepare=absorb_latent_rows),
            "jenga": Job(ours, requests, env=POISON),
        },
        tmp_path,
    )
    answers = reports["jenga"].answers
    assert_same_answers("minicpm3", reports["plain"].answers, answers)
    assert len(accepted(answers)) == 5 and min(accepted(answers)) > 0


def test_ngram_drafts_beside_sinks(tmp_path: Path) -> None:
    """gpt-oss has windows, and logits of a token without a value, which stock's own torch backend
    does not read: this is compared with Jenga without drafts."""
    model = write_model(tmp_path / "model", RELEASED["gpt_oss"], seed=3)
    plain = {**server_flags(model, 16), "max_total_tokens": 640, "max_running_requests": 12}
    plain |= {"memory_backend": "jenga"}
    ours = {**plain, **NGRAM, "speculative_num_draft_tokens": 7}
    requests = drafting_stream()
    reports = run_jobs(
        {"plain": Job(plain, requests), "drafts": Job(ours, requests, env=POISON)}, tmp_path
    )
    answers = reports["drafts"].answers
    assert_same_answers("gpt_oss", reports["plain"].answers, answers)
    print(accepted(answers), reports["drafts"].retractions)
    assert len(accepted(answers)) == 7 and accepted(answers)[-1] > 10
    assert reports["drafts"].retractions > 0
