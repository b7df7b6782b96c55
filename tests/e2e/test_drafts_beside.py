"""Drafts beside what else a server may be asked for: KV in fp8, images in the text."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import compare
from e2e.checks import POISON, assert_same_answers, server_flags
from e2e.drafting import NGRAM, accepted, drafting_stream
from e2e.engine import Job, run_jobs
from e2e.oracle import oracle_of
from e2e.test_draft_models import standalone
from e2e.test_dtypes import FP8
from e2e.test_sights import make_requests, name_as_released
from models.tiny import HEAD_DIM, write_model
from models.tiny_sights import SIGHTS


@pytest.mark.parametrize(
    "dtype",
    [
        {"kv_cache_dtype": "fp8_e5m2"},
        pytest.param({"jenga_kv_dtype": "full=fp8_e4m3"}, marks=pytest.mark.long),
    ],
)
def test_kv_in_fp8(
    dtype: dict[str, str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The draft's rows have the dtype of their group too. Compared with a server that does not
    draft, for no other has one dtype for some layers; the same in one dtype is in `test_dtypes`."""
    model = tiny_model("gemma3")
    requests = drafting_stream()[:20]
    plain: dict[str, Any] = {**server_flags(model, 16), **dtype, "memory_backend": "jenga"}
    plain |= {"max_total_tokens": 640, "max_running_requests": 12}
    known = run_jobs({"plain": Job(plain, requests, env=POISON)}, tmp_path)["plain"].answers
    oracle = oracle_of(requests, known, 4)
    flags = {**plain, **standalone(model, 4)}
    job = Job(flags, requests, env=POISON, prepare=oracle.install)
    report = run_jobs({"drafts": job}, tmp_path)["drafts"]
    same = compare(known, report.answers, FP8)
    print(same, accepted(report.answers), report.retractions, report.cached_tokens)
    assert not same.differences and same.equal > 0.9 * len(requests), str(same)
    assert min(accepted(report.answers)) > 0 and len(accepted(report.answers)) == 5
    items = {g["dependency"]: g["bytes_per_token"] // g["layers"] for g in report.state["groups"]}
    other = 4 if "jenga_kv_dtype" in dtype else 1
    assert items == {"full": 4 * HEAD_DIM, "window 48": other * 4 * HEAD_DIM}


@pytest.mark.long
@pytest.mark.parametrize("name", ["gemma3_sight", "qwen3_vl"])
def test_images(name: str, tmp_path: Path) -> None:
    """Whole images, and positions in two dimensions; n-grams are of the text."""
    kind = SIGHTS[name].kind
    path = write_model(tmp_path / "model", kind, seed=zlib.crc32(name.encode()))
    name_as_released(path / "model.safetensors")
    requests = 2 * make_requests(name)[:20]
    plain = server_flags(path, 16) | kind.flags | {"memory_backend": "jenga"}
    drafts = {**plain, **NGRAM, "speculative_num_draft_tokens": 6}
    reports = run_jobs(
        {
            "plain": Job(plain, requests, env=POISON),
            "drafts": Job(drafts, requests, env=POISON),
        },
        tmp_path,
    )
    answers = reports["drafts"].answers
    assert_same_answers(name, reports["plain"].answers, answers)
    print(accepted(answers), reports["drafts"].retractions, reports["drafts"].cached_tokens)
    assert len(accepted(answers)) == 6
    assert reports["drafts"].cached_tokens > 500
