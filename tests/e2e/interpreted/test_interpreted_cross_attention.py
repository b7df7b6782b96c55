"""Cross-attention through kernels: answers about images are those of plain torch."""

from pathlib import Path
from typing import Any

import pytest
from e2e import images
from e2e.checks import POISON, assert_same_answers, server_flags
from e2e.engine import Job, run_jobs
from e2e.interpreted.test_interpreted_answers import PREPARE
from models.tiny_mllama import MAX_LENGTH, TinyMllama

FLAGS: dict[str, dict[str, Any]] = {
    "flashinfer": {},
    "triton": {"triton_attention_num_kv_splits": 1},
}
NUM_REQUESTS = {"flashinfer": 8, "triton": 5}


@pytest.mark.parametrize("backend", ["flashinfer", pytest.param("triton", marks=pytest.mark.long)])
def test_every_answer_is_plain_torchs(backend: str, tmp_path: Path) -> None:
    model = TinyMllama()
    requests = images.make_requests(model.tiles, NUM_REQUESTS[backend])
    flags = server_flags(model.write(tmp_path / "mllama"), 16) | {
        "context_length": MAX_LENGTH,
        "memory_backend": "jenga",
    }
    kernels = {**flags, **FLAGS[backend], "attention_backend": backend}
    reports = run_jobs(
        {
            "torch": Job(flags, requests, concurrency=4),
            "kernels": Job(kernels, requests, concurrency=4, env=POISON, prepare=PREPARE[backend]),
        },
        tmp_path,
    )
    assert_same_answers(backend, reports["torch"].answers, reports["kernels"].answers)
    assert reports["kernels"].cached_tokens > 0
