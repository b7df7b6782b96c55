"""Drafts of models with recurrent layers, verified through kernels and in graphs: answers are those
of `jenga_torch` without drafts, and the next turn hits what it hits then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import FLOAT32
from e2e.checks import EXACT_STATES, POISON, STATES, assert_same_answers, server_flags
from e2e.drafting import NGRAM, accepted, overlapping
from e2e.engine import Job, run_jobs
from e2e.host_graphs import decode_in_graphs, replays
from e2e.hugging_face import greedy_tokens
from e2e.interpreted.test_interpreted_drafts import FLAGS, prepared
from e2e.interpreted.test_interpreted_state_graphs import CONTINUED, LONG, PROMPTS, SHORT
from e2e.oracle import oracle_of
from e2e.stream import Request
from e2e.test_state_drafts import TOLERANCES
from models.released import RELEASED
from models.tiny import ARCHITECTURES, write_model
from models.tiny_draft import with_qwen_head


def turns(path: Path) -> list[Request]:
    """Prompts that come twice, so that n-grams foresee whole answers, and a next turn."""
    first, *others = PROMPTS
    again = [*first, *greedy_tokens(path, first, LONG), 5, 6, 7]
    requests = [Request(first, LONG, ignore_eos=True)]
    requests += [Request(prompt, SHORT, ignore_eos=True) for prompt in others]
    return [*requests, *requests, Request(again, SHORT, ignore_eos=True)]


@pytest.mark.parametrize(
    ("backend", "architecture", "drafts", "in_graphs"),
    [
        ("flashinfer", "lfm2", 5, True),
        pytest.param("flashinfer", "lfm2", 5, False, marks=pytest.mark.long),
        pytest.param("flashinfer", "qwen3_5", 17, True, marks=pytest.mark.long),
        pytest.param("flashinfer", "qwen3_5", 6, False, marks=pytest.mark.long),
        pytest.param("flashinfer", "falcon_h1", 4, True, marks=pytest.mark.long),
        pytest.param("flashinfer", "falcon_mamba", 4, True, marks=pytest.mark.long),
        pytest.param("flashinfer", "kimi_linear", 4, True, marks=pytest.mark.long),  # latent rows
        pytest.param("triton", "qwen3_5", 4, True, marks=pytest.mark.long),
    ],
)
def test_n_grams_over_states(
    backend: str,
    architecture: str,
    drafts: int,
    in_graphs: bool,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path = tiny_model(architecture)
    requests = turns(path)
    env = EXACT_STATES | POISON | {"JENGA_POLICIES": "answer_state_tokens=16"}
    plain = server_flags(path, 16) | STATES | {"memory_backend": "jenga"}
    ours: dict[str, Any] = {**plain, **NGRAM, **FLAGS[backend], "attention_backend": backend}
    ours["speculative_num_draft_tokens"] = drafts
    graphs: dict[str, Any] = {"before": decode_in_graphs, "after": replays} if in_graphs else {}
    # Drafts may be so good that the next turn would come before the answer that it goes on from.
    some: dict[str, Any] = {"concurrency": 3, "last_alone": True, "env": env}
    prepare = prepared(backend, overlapping)
    reports = run_jobs(
        {
            "plain": Job(plain, requests, **some),
            "drafts": Job(ours, requests, **some, prepare=prepare, **graphs),
        },
        tmp_path,
    )
    known, answers = reports["plain"].answers, reports["drafts"].answers
    tolerance = TOLERANCES.get(architecture, FLOAT32)
    assert_same_answers(f"{architecture}, n-grams", known, answers, tolerance)
    print(accepted(answers), reports["drafts"].after)
    assert len(accepted(answers)) == drafts
    if in_graphs:
        seen = reports["drafts"].after
        assert any(size > batch for size, batch in seen) and sum(seen.values()) > LONG
    assert answers[-1].cached_tokens == known[-1].cached_tokens == CONTINUED


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "steps"), [("qwen3_5", 3), ("qwen3_next", 2)])
def test_a_head_of_its_own(architecture: str, steps: int, tmp_path: Path) -> None:
    """The target verifies in graphs; the head's own steps run without."""
    made = write_model(tmp_path / "made", (ARCHITECTURES | RELEASED)[architecture], 12)
    path = with_qwen_head(tmp_path / "target", made, like_layer=2)
    requests = [Request(prompt, SHORT, ignore_eos=True) for prompt in PROMPTS]
    plain = server_flags(path, 16) | STATES | {"memory_backend": "jenga"}
    env = EXACT_STATES | POISON
    known = run_jobs({"plain": Job(plain, requests, env=env)}, tmp_path)["plain"].answers
    oracle = oracle_of(requests, known, steps)
    drafting = {
        **plain,
        "attention_backend": "flashinfer",
        "speculative_algorithm": "NEXTN",
        "speculative_num_steps": steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": steps + 1,
    }
    prepare = prepared("flashinfer", oracle.install)
    job = Job(drafting, requests, env=env, prepare=prepare, before=decode_in_graphs, after=replays)
    report = run_jobs({"drafts": job}, tmp_path)["drafts"]
    tolerance = TOLERANCES["qwen3_5"]
    assert_same_answers(f"{architecture}, its own head", known, report.answers, tolerance)
    print(accepted(report.answers), report.after)
    assert min(accepted(report.answers)) > 0 and len(accepted(report.answers)) == steps + 1
    assert sum(report.after.values()) > 0
