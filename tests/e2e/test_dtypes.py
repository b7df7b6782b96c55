"""KV in fp8, and beside it states in float32: the answers are stock's, and the bytes those of the
dtype."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.answers import Tolerance, compare
from e2e.checks import POISON, assert_outputs_vary, server_flags
from e2e.engine import Job, run_jobs
from e2e.stream import StreamShape, make_stream
from models.tiny import HEAD_DIM

SHAPE = StreamShape(num_requests=40, longest_prompt=300)
KV_HEADS = 2
# What differs in the last bit of a float32 may round to another fp8.
FP8 = Tolerance(0.02, 0.02)


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("gemma3", "fp8_e5m2"), ("falcon_h1", "fp8_e4m3")]
)
def test_kv_in_fp8(
    architecture: str, dtype: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(tiny_model(architecture), 16) | {"kv_cache_dtype": dtype}
    env = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}
    stock = {"memory_backend": "default"}
    if architecture == "falcon_h1":
        flags |= {"max_mamba_cache_size": 60, "max_running_requests": 20}
        stock |= {
            "page_size": 1,
            "mamba_radix_cache_strategy": "no_buffer",
            "disable_overlap_schedule": True,
        }
    jenga = flags | {"memory_backend": "jenga"}
    reports = run_jobs(
        {
            "stock": Job(flags | stock, requests, env=env),
            "jenga": Job(jenga, requests, env=env | POISON),
            "float32": Job(jenga | {"kv_cache_dtype": "auto"}, requests, env=env),
        },
        tmp_path,
    )
    ours = reports["jenga"]
    same = compare(reports["stock"].answers, ours.answers, FP8)
    assert not same.differences and same.equal > 0.9 * len(requests), str(same)
    other = compare(reports["float32"].answers, ours.answers, FP8)
    assert len(other.differences) > len(requests) / 2, str(other)
    assert_outputs_vary(ours.answers)
    assert ours.cached_tokens > 300
    rows = [group for group in ours.state["groups"] if group["bytes_per_token"]]
    assert all(g["bytes_per_token"] == g["layers"] * 2 * KV_HEADS * HEAD_DIM for g in rows)
