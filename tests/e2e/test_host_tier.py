"""With host memory below a pool that is far too small, answers are those of a server whose pool
holds everything."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import late_copies
import pytest
from e2e import stock_hicache
from e2e.checks import (
    EXACT_STATES,
    POISON,
    STATES,
    STOCK_STATES,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.engine import Job, Report, run_jobs
from e2e.stream import Request, StreamShape, make_stream

SHAPE = StreamShape(num_requests=70, longest_prompt=400)
HOST = {"enable_hierarchical_cache": True, "hicache_ratio": 8.0}
EVERYTHING_TOKENS = 40_000

CASES = [
    ("llama", "write_back", {}),
    ("gemma3", "write_through", {}),
    pytest.param("gemma3", "write_back", {}, marks=pytest.mark.long),  # late copies have it, below
    ("lfm2", "write_back", STATES),
    ("falcon_h1", "write_through_selective", STATES),
]


def always_load() -> None:
    """Patch this process: what a load takes differs from run to run, and with it what is hit."""
    from jenga_sglang.core.prices import Prices

    Prices.is_worth = lambda self, num_bytes, tokens: True  # type: ignore[method-assign]


def copy_late() -> None:
    always_load()
    late_copies.install()


def run(
    model: Path, flags: dict[str, Any], write_policy: str, folder: Path
) -> tuple[Report, Report]:
    requests = make_stream(SHAPE, seed=4)
    small = server_flags(model, page_size=16) | flags
    stock = STOCK_STATES if flags else {"memory_backend": "default"}
    tiers = HOST | {"memory_backend": "jenga", "hicache_write_policy": write_policy}
    jobs = {
        "everything": Job(
            small | {"max_total_tokens": EVERYTHING_TOKENS} | stock, requests, env=EXACT_STATES
        ),
        "tiers": Job(small | tiers, requests, env=EXACT_STATES | POISON, prepare=always_load),
    }
    reports = run_jobs(jobs, folder)
    return reports["everything"], reports["tiers"]


@pytest.mark.parametrize(("architecture", "write_policy", "flags"), CASES)
def test_every_answer_is_that_of_a_pool_that_holds_everything(
    architecture: str,
    write_policy: str,
    flags: dict[str, Any],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    everything, tiers = run(tiny_model(architecture), flags, write_policy, tmp_path)

    assert_same_answers(architecture, everything.answers, tiers.answers)
    assert_outputs_vary(tiers.answers)
    host = tiers.state["host"]
    # Windows are kept at the ends of prompts and of answers, rows of a stock pool everywhere.
    assert tiers.cached_tokens > 0.8 * everything.cached_tokens
    assert host["hit_tokens"] > 0
    assert all(group["loaded_bytes"] > 0 for group in host["groups"])
    assert all(group["evicted_pages"] > 0 for group in tiers.state["groups"])
    print(architecture, everything.cached_tokens, tiers.cached_tokens, host)


@pytest.mark.parametrize(
    ("architecture", "write_policy", "flags"),
    [
        ("gemma3", "write_back", {}),
        pytest.param("gemma3", "write_through", {}, marks=pytest.mark.long),
        pytest.param("falcon_h1", "write_back", STATES, marks=pytest.mark.long),
    ],
)
def test_copies_that_lie_on_a_stream_as_on_a_gpu_change_no_answer(
    architecture: str,
    write_policy: str,
    flags: dict[str, Any],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """None is made before the next step begins."""
    requests = make_stream(SHAPE, seed=3)
    small = server_flags(tiny_model(architecture), page_size=16) | flags
    tiers = small | HOST | {"memory_backend": "jenga", "hicache_write_policy": write_policy}
    jobs = {
        "at once": Job(tiers, requests, env=EXACT_STATES, prepare=always_load),
        "late": Job(
            tiers,
            requests,
            env=EXACT_STATES,
            prepare=copy_late,
            after=late_copies.num_late,
        ),
    }
    reports = run_jobs(jobs, tmp_path)
    assert_same_answers(architecture, reports["at once"].answers, reports["late"].answers)
    assert_outputs_vary(reports["late"].answers)
    assert reports["late"].after > 100
    assert reports["late"].state["host"]["hit_tokens"] > 0


def test_full_attention_hits_what_stocks_own_host_tier_hits(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Ten prompts one after the other, three times, in a pool of two of them: all but the first
    round come from the host, in both."""
    rng = random.Random(5)
    prompts = [[rng.randrange(4, 260) for _ in range(300 + 17 * n)] for n in range(10)]
    requests = [Request(prompt, max_new_tokens=8) for _ in range(3) for prompt in prompts]
    flags = server_flags(tiny_model("llama"), page_size=16)
    tiers = HOST | {"memory_backend": "jenga", "hicache_write_policy": "write_through"}
    jobs = {
        "stock": Job(
            flags | stock_hicache.FLAGS,
            requests,
            concurrency=1,
            prepare=stock_hicache.run_on_cpu,
        ),
        "tiers": Job(flags | tiers, requests, concurrency=1, env=POISON, prepare=always_load),
    }
    reports = run_jobs(jobs, tmp_path)
    stock, jenga = reports["stock"].answers, reports["tiers"].answers
    assert_same_answers("llama", stock, jenga)
    hits = [(len(request.prompt) - 1) // 16 * 16 for request in requests]
    assert [answer.cached_tokens for answer in stock[10:]] == hits[10:]
    assert [answer.cached_tokens for answer in jenga] == [answer.cached_tokens for answer in stock]
    assert reports["tiers"].state["host"]["hit_tokens"] > sum(hits[10:]) / 2
