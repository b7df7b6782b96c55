"""Requests that read their prompt and generate nothing: embeddings, rewards, scores of labels. They
share prefixes and slide windows like any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from e2e.checks import POISON, server_flags
from e2e.engine import Job, Report, run_jobs
from e2e.hugging_face import load
from e2e.stream import Request, StreamShape, make_stream
from models.released import RELEASED, dependencies
from models.tiny import ARCHITECTURES, write_model

SHAPE = StreamShape(num_requests=60, longest_prompt=300)
LABELS = [7, 11, 200]
ERROR = 1e-4


def answer(path: Path, tmp_path: Path, asks: str | list[int], **flags: Any) -> Report:
    """Answers of Jenga, in a pool that holds few of the prompts."""
    given = server_flags(path, 16) | {"memory_backend": "jenga", "max_total_tokens": 600} | flags
    job = Job(given, make_stream(SHAPE, seed=1), env=POISON, asks=asks)
    report = run_jobs({"jenga": job}, tmp_path)["jenga"]
    assert report.cached_tokens > 500
    for group in report.state["groups"]:
        assert group["evicted_pages"] > 0 and group["used_bytes"] == 0, group
    return report


def assert_close(report: Report, expected: Any) -> None:
    """``expected(request)`` is what Hugging Face gives, a vector."""
    requests: list[Request] = make_stream(SHAPE, seed=1)
    seen = set()
    for request, given in list(zip(requests, report.answers, strict=True))[::3]:
        with torch.inference_mode():
            wanted = expected(torch.tensor([request.prompt]))
        found = torch.tensor(given.pooled)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < ERROR, request
        seen.add(tuple(given.pooled))
    assert len(seen) > 10


def test_embeddings_are_the_normed_last_state(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", RELEASED["qwen3"], seed=5)
    report = answer(path, tmp_path, "embedding", is_embedding=True)

    def last_state(tokens: torch.Tensor) -> torch.Tensor:
        state = load(path).model(input_ids=tokens).last_hidden_state[0, -1]
        return state / state.norm()

    assert_close(report, last_state)


@pytest.mark.parametrize("name", ["gemma2", pytest.param("llama", marks=pytest.mark.long)])
def test_rewards_are_hugging_faces(name: str, tmp_path: Path) -> None:
    """A head of a few numbers on the last token; Gemma-2 has windows and caps."""
    kind = (ARCHITECTURES | RELEASED)[name]
    path = write_model(tmp_path / "model", kind, seed=6)
    config = kind.make_config()
    config.num_labels = 3
    config._attn_implementation = "eager"  # the others know no cap
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = getattr(transformers, f"{kind.model}ForSequenceClassification")(config).eval()
    model.save_pretrained(path)
    report = answer(path, tmp_path, "embedding", is_embedding=True)
    assert sorted(g["dependency"] for g in report.state["groups"]) == sorted(dependencies(kind))
    assert_close(report, lambda tokens: model(input_ids=tokens).logits[0])


@pytest.mark.parametrize("name", ["gemma3", pytest.param("llama", marks=pytest.mark.long)])
def test_scores_are_the_logprobs_of_the_labels(name: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", ARCHITECTURES[name], seed=7)
    report = answer(path, tmp_path, LABELS)

    def label_logprobs(tokens: torch.Tensor) -> torch.Tensor:
        return load(path)(input_ids=tokens).logits[0, -1].log_softmax(-1)[LABELS]

    assert_close(report, label_logprobs)
