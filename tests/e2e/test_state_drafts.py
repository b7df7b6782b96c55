"""Drafts of models with recurrent layers: Jenga's answers are those that stock SGLang gives without
drafts, and its prefix cache hits as much as without."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.answers import FLOAT32, Tolerance
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STOCK_STATES,
    absorb_latent_rows,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.drafting import NGRAM, accepted, drafting_stream, overlapping
from e2e.engine import Job, run_jobs
from e2e.oracle import oracle_of
from e2e.stream import TOKENS, Request
from models.released import RELEASED
from models.tiny import ARCHITECTURES, write_model
from models.tiny_draft import with_qwen_head

LENGTHS = range(26, 44)  # of answers whose ends are on either side of the ends of two pages

# A gated delta net rounds otherwise where more tokens are computed at once (`test_states`).
TOLERANCES = {"qwen3_5": Tolerance(4e-4, 1e-5)}

# architecture, page size, tokens and states of a stock pool with as many bytes (it has states for
# drafts beside them), drafts at most, continuations of one n-gram, overlapped
CASES = [
    ("lfm2", 16, (640, 3), 4, 1, True),
    ("qwen3_5", 16, (320, 3), 20, 1, True),
    pytest.param("falcon_h1", 16, (640, 3), 8, 1, False, marks=pytest.mark.long),
    pytest.param("qwen3_5", 1, (320, 3), 6, 4, False, marks=pytest.mark.long),
    pytest.param("kimi_linear", 64, (1280, 10), 3, 1, True, marks=pytest.mark.long),
    pytest.param("falcon_mamba", 16, (640, 3), 5, 1, True, marks=pytest.mark.long),
]


@pytest.mark.parametrize(
    ("architecture", "page_size", "pools", "drafts", "breadth", "overlap"), CASES
)
def test_ngram_drafts_change_no_answer(
    architecture: str,
    page_size: int,
    pools: tuple[int, int],
    drafts: int,
    breadth: int,
    overlap: bool,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    plain = {
        **server_flags(tiny_model(architecture), page_size),
        "max_running_requests": 12,
        "max_total_tokens": pools[0],
        "max_mamba_cache_size": pools[1],
    }
    ours = {
        **plain,
        **NGRAM,
        "memory_backend": "jenga",
        "speculative_num_draft_tokens": drafts,
        "speculative_ngram_max_bfs_breadth": breadth,
    }
    requests = drafting_stream()
    prepare = overlapping if overlap else None
    stock = plain | STOCK_STATES | {"max_total_tokens": 4096, "max_mamba_cache_size": 60}
    reports = run_jobs(
        {
            "stock": Job(stock, requests, env=EXACT_STATES, prepare=absorb_latent_rows),
            "jenga": Job(ours, requests, env=EXACT_STATES | POISON, prepare=prepare),
        },
        tmp_path,
    )
    report, tolerance = reports["jenga"], TOLERANCES.get(architecture, FLOAT32)
    answers = report.answers
    assert_same_answers(architecture, reports["stock"].answers, answers, tolerance)
    assert_outputs_vary(answers[: len(answers) // 2])  # the others are equal
    print(architecture, accepted(answers), report.retractions, report.cached_tokens)
    assert len(accepted(answers)) >= min(drafts, page_size + 1), "no step accepted more than a page"
    assert report.cached_tokens > 0 and report.state["saved_snapshots"] > 20
    # Without rows nothing grows, and nobody has to give way.
    assert report.retractions > 0 or architecture == "falcon_mamba"
    for group in report.state["groups"]:
        # A snapshot goes with the rows behind which nobody gets any more, too.
        assert group["evicted_pages"] + group["cascaded_pages"] > 0, group
        assert group["used_bytes"] == 0, group


def test_a_next_turn_hits_as_much_as_without_drafts(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """One request at a time; of each answer what is left behind its last whole page is found by the
    next turn, however many drafts a step has accepted there."""
    rng = random.Random(7)
    first = [Request([rng.choice(TOKENS) for _ in range(21)], n, ignore_eos=True) for n in LENGTHS]
    flags = {**server_flags(tiny_model("lfm2"), 16), "memory_backend": "jenga"}
    # Nothing is evicted.
    flags |= {"max_total_tokens": 8192, "max_mamba_cache_size": 60, "max_running_requests": 4}
    env = EXACT_STATES | POISON | {"JENGA_POLICIES": "answer_state_tokens=16"}
    known = run_jobs({"jenga": Job(flags, first, concurrency=1, env=env)}, tmp_path)["jenga"]
    nexts = [
        Request([*request.prompt, *answer.tokens, 5, 6, 7], 9, ignore_eos=True)
        for request, answer in zip(first, known.answers, strict=True)
    ]
    # Twice, for then n-grams foresee whole answers.
    requests = [*first, *first, *nexts]
    drafting = flags | NGRAM | {"speculative_num_draft_tokens": 7}
    reports = run_jobs(
        {
            "plain": Job(flags, requests, concurrency=1, env=env),
            "drafts": Job(drafting, requests, concurrency=1, env=env),
        },
        tmp_path,
    )
    plain, drafts = reports["plain"].answers, reports["drafts"].answers
    assert_same_answers("lfm2, turns", plain, drafts)
    print(accepted(drafts))
    assert accepted(drafts)[-1] > len(first) and len(accepted(drafts)) == 7
    assert [a.cached_tokens for a in drafts] == [a.cached_tokens for a in plain]
    ends = [(21 + n - 1) // 16 * 16 for n in LENGTHS]
    assert [a.cached_tokens for a in drafts[-len(LENGTHS) :]] == ends


@pytest.mark.parametrize(
    ("architecture", "page_size", "steps"),
    [
        ("qwen3_5", 16, 4),
        pytest.param("qwen3_5", 1, 2, marks=pytest.mark.long),
        pytest.param("qwen3_next", 64, 3, marks=pytest.mark.long),
    ],
)
def test_a_head_of_its_own(architecture: str, page_size: int, steps: int, tmp_path: Path) -> None:
    """These checkpoints have a layer that drafts. It is one more of the layers with attention, and
    reads what the target's recurrent ones have made; its drafts are as right as was planned."""
    made = write_model(tmp_path / "made", (ARCHITECTURES | RELEASED)[architecture], 12)
    target = with_qwen_head(tmp_path / "target", made, like_layer=2)
    requests = drafting_stream()[:20]
    plain = {
        **server_flags(target, page_size),
        "max_running_requests": 12,
        "max_total_tokens": 640,
        "max_mamba_cache_size": 3,
    }
    flags = {
        **plain,
        "memory_backend": "jenga",
        "speculative_algorithm": "NEXTN",
        "speculative_num_steps": steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": steps + 1,
    }
    stock = plain | STOCK_STATES | {"max_total_tokens": 4096, "max_mamba_cache_size": 60}
    known = run_jobs({"stock": Job(stock, requests, env=EXACT_STATES)}, tmp_path)["stock"].answers
    oracle = oracle_of(requests, known, steps)
    job = Job(flags, requests, env=EXACT_STATES | POISON, prepare=oracle.install)
    report = run_jobs({"jenga": job}, tmp_path)["jenga"]
    tolerance = TOLERANCES["qwen3_5"]
    assert_same_answers(f"{architecture}, its own head", known, report.answers, tolerance)
    print(accepted(report.answers), report.retractions, report.cached_tokens)
    assert min(accepted(report.answers)) > 0 and len(accepted(report.answers)) == steps + 1
    assert [(g["dependency"], g["layers"]) for g in report.state["groups"]] == [
        ("full", 3),
        ("last state", 4),
    ]
