"""Storage below host memory: what one server has left in a folder, another hits; and whatever
storage does, answers are those of a pool that holds everything."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import late_copies
import pytest
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STATES,
    STOCK_STATES,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.engine import Job, Report, RunningJob, run_jobs
from e2e.stream import StreamShape, make_stream

SHAPE = StreamShape(num_requests=40, longest_prompt=400)
STREAM = make_stream(SHAPE, seed=5)
TIERS = {
    "memory_backend": "jenga",
    "enable_hierarchical_cache": True,
    "hicache_ratio": 4.0,
    "hicache_write_policy": "write_through",
}


def storage(folder: Path, policy: str = "wait_complete") -> dict[str, Any]:
    return TIERS | {
        "hicache_storage_backend": "file",
        "hicache_storage_prefetch_policy": policy,
        "hicache_storage_backend_extra_config": '{"prefetch_threshold": 16}',
        "file_storage_path": str(folder),
    }


def wait_until_written(scheduler: Any) -> None:
    tier = scheduler.tree_cache.storage
    while tier.writer.num_queued:
        time.sleep(0.01)
    assert tier.writer.stop(None)


class Runs:
    """Servers of one model, each on the stream. What each keeps is that of a pool that is far too
    small, with freed pages poisoned in both tiers and every leak checked for."""

    def __init__(self, model: Path, flags: dict[str, Any], tmp_path: Path) -> None:
        self._flags = server_flags(model, page_size=16) | flags
        self._stock = STOCK_STATES if flags else {"memory_backend": "default"}
        self._folder = tmp_path

    def late(self) -> Job:
        """Copies lie on a stream, as on a GPU, where poison would not."""
        job = self.job()
        without_poison = {name: value for name, value in job.env.items() if name not in POISON}
        return replace(job, prepare=late_copies.install, env=without_poison)

    def job(self, policy: str = "wait_complete", **env: str) -> Job:
        flags = self._flags | storage(self._folder / "pages", policy)
        env = EXACT_STATES | POISON | env
        return Job(flags, STREAM, env=env, after=wait_until_written)

    def stock(self) -> Job:
        """A pool that holds everything."""
        flags = self._flags | {"max_total_tokens": 40_000} | self._stock
        return Job(flags, STREAM, env=EXACT_STATES)

    def run(self, **jobs: Job) -> dict[str, Report]:
        return run_jobs(jobs, self._folder)


CASES = [
    ("gemma3", {}),
    pytest.param("llama", {}, marks=pytest.mark.long),
    pytest.param("falcon_h1", STATES, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("architecture", "flags"), CASES)
def test_a_server_hits_what_another_has_left(
    architecture: str, flags: dict[str, Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = Runs(tiny_model(architecture), flags, tmp_path)
    before = runs.run(everything=runs.stock(), writes=runs.job())
    reads = runs.run(reads=runs.job())["reads"]
    for report in (before["writes"], reads):
        assert_same_answers(architecture, before["everything"].answers, report.answers)
        assert_outputs_vary(report.answers)
    assert reads.answers[0].cached_tokens > 0
    facts = reads.state["storage"]
    assert facts["hit_tokens"] > 0
    assert all(group["read_bytes"] > 0 for group in facts["groups"])
    assert all(group["written_bytes"] > 0 for group in before["writes"].state["storage"]["groups"])


@pytest.mark.long
def test_storage_gets_what_a_gpu_has_copied(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = Runs(tiny_model("gemma3"), {}, tmp_path)
    before = runs.run(everything=runs.stock(), writes=runs.late())
    reads = runs.run(reads=runs.late())["reads"]
    for report in (before["writes"], reads):
        assert_same_answers("late", before["everything"].answers, report.answers)
    assert reads.state["storage"]["hit_tokens"] > 0


FAILURES = {
    "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.2",
    "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.004",
}


@pytest.mark.parametrize(
    "policy",
    [
        "timeout",
        pytest.param("best_effort", marks=pytest.mark.long),
        pytest.param("wait_complete", marks=pytest.mark.long),
    ],
)
def test_storage_that_fails_and_is_slow_changes_no_answer(
    policy: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """With the failures and delays that SGLang injects into its own tests."""
    runs = Runs(tiny_model("gemma3"), {}, tmp_path)
    before = runs.run(everything=runs.stock(), first=runs.job(policy, **FAILURES))
    second = runs.run(second=runs.job(policy, **FAILURES))["second"]
    for report in (before["first"], second):
        assert_same_answers(policy, before["everything"].answers, report.answers)
        assert sum(report.state["storage"]["failures"].values()) > 0


def test_a_server_that_was_killed_as_it_wrote_leaves_nothing_wrong(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """It dies with a hundred pages written and more to come; some of what it left is cut short."""
    runs = Runs(tiny_model("gemma3"), {}, tmp_path)
    slow = {"SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.02"}
    killed = RunningJob(runs.job(**slow), tmp_path / "killed")
    while len(files := list((tmp_path / "pages").glob("*.bin"))) < 100:
        time.sleep(0.05)
    killed.stop()
    for path in files[::7]:
        path.write_bytes(path.read_bytes()[:100])
    reports = runs.run(everything=runs.stock(), next=runs.job())
    assert_same_answers("killed", reports["everything"].answers, reports["next"].answers)
    facts = reports["next"].state["storage"]
    assert facts["hit_tokens"] > 0 and facts["failures"]["read"] > 0
