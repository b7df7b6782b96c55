"""Kinds of attention layers that no model of SGLang mixes so, or none that runs on a CPU: a model
of our own, through SGLang's mechanism for external models, against plain torch over whole
sequences."""

from pathlib import Path

import external_models
import pytest
from e2e.checks import POISON, assert_outputs_vary, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.stream import StreamShape, make_stream
from external_models.net import Layer, answer, make_mixed_model

SHAPE = StreamShape(num_requests=60, longest_prompt=300, longest_answer=100)

MODELS = {
    "two windows": [Layer(window=24), Layer(window=100), Layer(), Layer(window=24)],
    "windows only": [Layer(window=24), Layer(window=100)],
    "chunks": [Layer(chunk=64), Layer(chunk=64), Layer()],
    "shared KV": [Layer(window=48), Layer(), Layer(window=48, shares=0), Layer(shares=1)],
    "K wider than V": [Layer(dim_k=24, dim_v=16), Layer(window=48, dim_k=24, dim_v=16, kv_heads=4)],
    "heads by layer": [Layer(kv_heads=1, dim_k=32, dim_v=32), Layer(kv_heads=4), Layer(window=40)],
    "sinks": [Layer(window=32, sinks=True), Layer(sinks=True)],
}
GROUPS = {
    "two windows": {"window 24": 2, "window 100": 1, "full": 1},
    "windows only": {"window 24": 1, "window 100": 1},
    "chunks": {"chunk 64": 2, "full": 1},
    "shared KV": {"window 48": 1, "full": 1},
    "K wider than V": {"full": 1, "window 48": 1},
    "heads by layer": {"full": 2, "window 40": 1},
    "sinks": {"window 32": 1, "full": 1},
}


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_plain_torch(name: str, tmp_path: Path) -> None:
    net = make_mixed_model(tmp_path / "model", MODELS[name])
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(tmp_path / "model", 16) | {"memory_backend": "jenga"}
    reports = run_jobs(
        {
            "warm": Job(flags, requests, env=POISON, prepare=external_models.register),
            "cold": Job(
                flags | {"disable_radix_cache": True, "max_total_tokens": 8192},
                requests,
                prepare=external_models.register,
            ),
        },
        tmp_path,
    )
    warm = reports["warm"]
    assert_same_answers(name, reports["cold"].answers, warm.answers)
    assert_outputs_vary(warm.answers)
    groups: dict[str, int] = {}
    for group in warm.state["groups"]:
        groups[group["dependency"]] = groups.get(group["dependency"], 0) + group["layers"]
        assert group["used_bytes"] == 0
        assert group["evicted_pages"] + group["cascaded_pages"] > 0, group
    assert groups == GROUPS[name]
    assert warm.cached_tokens > 500
    for request, given in list(zip(requests, warm.answers, strict=True))[::12]:
        assert answer(net, request.prompt, len(given.tokens)) == given.tokens
