"""Requests that come together and share a long prefix: one computes it, the others wait and hit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.answers import FLOAT32
from e2e.checks import EXACT_STATES, POISON, STATES, assert_same_answers, server_flags
from e2e.engine import Job, Report, run_jobs
from e2e.stream import TOKENS, Request

PAGE = 16
# Of 300 tokens that all begin with, 18 whole pages.
SHARED, HIT = [TOKENS[n * n % 251] for n in range(300)], 288
QUESTIONS = [[TOKENS[n], TOKENS[2 * n], TOKENS[3 * n]] for n in range(20, 23)]
REQUESTS = [Request(SHARED + question, 8, ignore_eos=True) for question in QUESTIONS]


def hits(report: Report) -> list[int]:
    return [answer.cached_tokens for answer in report.answers]


@pytest.mark.parametrize("architecture", ["gemma3", "lfm2"])
def test_what_one_computes_the_others_hit(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Prompts are computed in chunks of 128 tokens, or each in one step in which all have room; the
    result of a step is known before the next is launched, or after that."""
    flags = server_flags(tiny_model(architecture), PAGE) | STATES | {"memory_backend": "jenga"}
    chunks, whole = {"chunked_prefill_size": 128}, {"chunked_prefill_size": 4096}
    one_by_one = {"disable_overlap_schedule": True}
    env = EXACT_STATES | POISON
    off = env | {"JENGA_POLICIES": "awaited_tokens=off"}
    reports = run_jobs(
        {
            "chunks": Job(flags | chunks, REQUESTS, env=env),
            "whole": Job(flags | whole, REQUESTS, env=env),
            "chunks, one by one": Job(flags | chunks | one_by_one, REQUESTS, env=env),
            "whole, one by one": Job(flags | whole | one_by_one, REQUESTS, env=env),
            "off": Job(flags | whole, REQUESTS, env=off),
            "cold": Job(flags | {"disable_radix_cache": True}, REQUESTS, env=env),
        },
        tmp_path,
    )
    cold, off_hits = reports.pop("cold"), hits(reports.pop("off"))
    for name, report in reports.items():
        assert_same_answers(f"{architecture}, {name}", cold.answers, report.answers, FLOAT32)
        first, *others = hits(report)
        assert first == 0
        # In chunks of 128 tokens a hit of 256 spares all but 32, for which nobody waits.
        assert all(hit == HIT or (hit == 256 and "chunks" in name) for hit in others), name
    assert off_hits == [0] * len(REQUESTS), "all are computed in one step"
