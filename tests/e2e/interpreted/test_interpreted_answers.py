"""Schedulers that serve from Jenga pages through kernels give stock's answers.

Triton's kernels run in its interpreter. FlashInfer's Python runs as it is, with the reference in
place of what it compiles; that prompts and answers share batches is asked of it as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.checks import POISON, absorb_latent_rows, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.stream import Request, StreamShape, make_stream

# Few and short: a kernel that is interpreted takes a second for what takes a GPU microseconds.
SHAPES = {
    "flashinfer": StreamShape(num_requests=24, longest_prompt=300, longest_answer=100),
    "triton": StreamShape(num_requests=7, longest_prompt=120, longest_answer=24),
}
POOL_TOKENS = 512
FLAGS: dict[str, dict[str, Any]] = {
    "flashinfer": {"enable_mixed_chunk": True},
    "triton": {"triton_attention_num_kv_splits": 1},
}


def use_reference_modules() -> None:
    """For the life of the process: FlashInfer's modules on the host, in float32 and small dims."""
    from flashinfer_ext.host_modules import flashinfer_on_host
    from jenga_sglang.adapter.attention.flashinfer_backend import JengaFlashInferBackend

    KEPT.append(flashinfer_on_host())
    KEPT[0].__enter__()
    JengaFlashInferBackend.kernels = lambda self, group: ()


KEPT: list[Any] = []
PREPARE = {"flashinfer": use_reference_modules, "triton": None}


@pytest.mark.parametrize(
    ("backend", "architecture"),
    [
        ("triton", "gemma3"),
        pytest.param("flashinfer", "gemma3", marks=pytest.mark.long),  # drafts have it, short
        pytest.param("flashinfer", "cohere2", marks=pytest.mark.long),
        pytest.param("flashinfer", "llama", marks=pytest.mark.long),
        pytest.param("triton", "llama", marks=pytest.mark.long),
    ],
)
def test_every_answer_is_stocks(
    backend: str, architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    requests = make_stream(SHAPES[backend], seed=1)
    flags = server_flags(tiny_model(architecture), 16) | {"max_total_tokens": POOL_TOKENS}
    stock = Job({**flags, "memory_backend": "default"}, requests)
    ours = {**flags, **FLAGS[backend], "memory_backend": "jenga", "attention_backend": backend}
    jenga = Job(ours, requests, env=POISON, prepare=PREPARE[backend])
    reports = run_jobs({"stock": stock, "jenga": jenga}, tmp_path)
    assert_same_answers(architecture, reports["stock"].answers, reports["jenga"].answers)
    assert reports["jenga"].cached_tokens > 0
    if backend == "flashinfer":
        assert reports["jenga"].retractions > 0, "memory was never short"


@pytest.mark.parametrize("backend", ["flashinfer", pytest.param("triton", marks=pytest.mark.long)])
def test_every_answer_over_latent_rows_is_stocks(
    backend: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """MLA, in prompts that continue a cached prefix and in those that do not."""
    prompts = [[7 + n * n % (23 + end) for n in range(end)] for end in (40, 21)]
    requests = [Request(prompt, 6, ignore_eos=True) for prompt in (*prompts, [*prompts[0], 9, 8])]
    flags = server_flags(tiny_model("deepseek_v3"), 16) | {"max_total_tokens": POOL_TOKENS}
    ours = flags | FLAGS[backend] | {"memory_backend": "jenga", "attention_backend": backend}
    flags |= {"memory_backend": "default"}
    jobs = {
        "stock": Job(flags, requests, concurrency=2, prepare=absorb_latent_rows),
        "jenga": Job(ours, requests, concurrency=2, env=POISON, prepare=PREPARE[backend]),
    }
    reports = run_jobs(jobs, tmp_path)
    assert_same_answers("deepseek_v3", reports["stock"].answers, reports["jenga"].answers)
    assert reports["jenga"].cached_tokens == 32
