"""Latent attention (MLA): one row a token, of which V is a view."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.checks import (
    POISON,
    absorb_latent_rows,
    assert_outputs_vary,
    assert_same_answers,
    server_flags,
)
from e2e.engine import Job, run_jobs
from e2e.hugging_face import greedy_tokens
from e2e.models_table import HUGGING_FACE, STOCK, keep
from e2e.stream import StreamShape, make_stream

SHAPE = StreamShape(num_requests=50, longest_prompt=300)
LATENT_BYTES = (32 + 16) * 4


@pytest.mark.parametrize("architecture", ["minicpm3", "deepseek_v3"])
def test_every_answer_is_stocks_and_hits_change_nothing(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tiny_model(architecture)
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(path, 16)
    reports = run_jobs(
        {
            "stock": Job(
                flags | {"memory_backend": "default"}, requests, prepare=absorb_latent_rows
            ),
            "jenga": Job(flags | {"memory_backend": "jenga"}, requests, env=POISON),
        },
        tmp_path,
    )
    ours = reports["jenga"]
    assert_same_answers(architecture, reports["stock"].answers, ours.answers)
    assert_outputs_vary(ours.answers)
    assert ours.cached_tokens > 500
    (group,) = ours.state["groups"]
    assert group["evicted_pages"] > 0 and group["used_bytes"] == 0
    assert group["bytes_per_token"] == group["layers"] * LATENT_BYTES
    for request, given in list(zip(requests, ours.answers, strict=True))[::9]:
        assert greedy_tokens(path, request.prompt, len(given.tokens)) == given.tokens
    keep(architecture, path, ours.state, [STOCK, HUGGING_FACE])
