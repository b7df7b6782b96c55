"""`--jenga-kv-dtype` and `--jenga-keep`: what a user asks of layers is what they store and read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.answers import Tolerance, compare
from e2e.checks import POISON, assert_outputs_vary, server_flags
from e2e.engine import Job, run_jobs
from e2e.hugging_face import load
from e2e.stream import StreamShape, make_stream
from models.tiny import HEAD_DIM, WINDOW

SHAPE = StreamShape(num_requests=40, longest_prompt=300)
KV_HEADS = 2
# What differs in the last bit of a float32 may round to another fp8.
FP8 = Tolerance(0.02, 0.02)


def test_kv_dtypes_by_kind_of_layer(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    requests = make_stream(SHAPE, seed=1)
    flags = server_flags(tiny_model("gemma3"), 16)
    fp8 = {"kv_cache_dtype": "fp8_e5m2"}
    asked: dict[str, dict[str, Any]] = {
        "none": {},
        "all": {"jenga_kv_dtype": "full=fp8_e5m2,window=fp8_e5m2"},
        "full": {"jenga_kv_dtype": "full=fp8_e5m2"},
        "all but windows": fp8 | {"jenga_kv_dtype": "window=float32"},
    }
    jobs = {
        name: Job(flags | {"memory_backend": "jenga"} | more, requests, env=POISON)
        for name, more in asked.items()
    }
    jobs["stock"] = Job(flags | {"memory_backend": "default"} | fp8, requests)
    reports = run_jobs(jobs, tmp_path)
    answers = {name: report.answers for name, report in reports.items()}
    assert_outputs_vary(answers["full"])
    # Where all kinds agree it is SGLang's own flag; where two servers store alike they say alike.
    same = compare(answers["stock"], answers["all"], FP8)
    assert not same.differences and same.equal > 0.9 * len(requests), str(same)
    same = compare(answers["full"], answers["all but windows"], FP8)
    assert not same.differences and same.equal > 0.9 * len(requests), str(same)
    for one, other in (("none", "full"), ("full", "all")):
        assert len(compare(answers[one], answers[other]).differences) > len(requests) / 2
    row = 2 * KV_HEADS * HEAD_DIM
    sizes = {g["name"]: g["bytes_per_token"] for g in reports["full"].state["groups"]}
    assert sizes == {f"window {WINDOW}": 5 * 4 * row, "full float8_e5m2": row}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("3+24", [(3, 24)] * 4),
        # Another budget for every few layers, as PyramidKV has them.
        ("0=5+80,1-2=3+40,3=0+17", [(5, 80), (3, 40), (3, 40), (0, 17)]),
    ],
)
def test_layers_read_what_they_keep(
    keep: str,
    kept: Sequence[tuple[int, int]],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Hugging Face's model, each layer with a mask of its own, thinks of the same tokens."""
    path = tiny_model("llama")
    requests = make_stream(SHAPE, seed=2)
    flags = server_flags(path, 16) | {"memory_backend": "jenga"}
    jobs = {
        "kept": Job(flags | {"jenga_keep": keep}, requests, env=POISON),
        "all": Job(flags, requests, env=POISON),
    }
    reports = run_jobs(jobs, tmp_path)
    answers = reports["kept"].answers
    assert_outputs_vary(answers)
    assert reports["kept"].cached_tokens > 300
    other = compare(reports["all"].answers, answers)
    assert len(other.differences) > len(requests) / 4
    for request, answer in list(zip(requests, answers, strict=True))[::4]:
        tokens = torch.tensor(answer.tokens)
        logprobs = masked_logprobs(path, request.prompt + answer.tokens[:-1], kept)
        logprobs = logprobs[len(request.prompt) - 1 :]
        given = logprobs.gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(given, torch.tensor(answer.logprobs), rtol=0, atol=1e-4)
        assert (given >= logprobs.max(1).values - 1e-5).all()


def masked_logprobs(path: Path, tokens: list[int], kept: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(tokens, vocabulary): logprobs behind each token where layer n reads the first ``kept[n][0]``
    tokens and a window of ``kept[n][1]``, the query's own token included."""
    model = load(path)
    query = torch.arange(len(tokens))[:, None]
    key = torch.arange(len(tokens))[None]

    def reads(sinks: int, window: int) -> Callable[..., Any]:
        seen = (key <= query) & ((key < sinks) | (query - key < window))
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        return lambda _, args, kwargs: (args, kwargs | {"attention_mask": mask})

    hooks = [
        layer.register_forward_pre_hook(reads(*of_layer), with_kwargs=True)
        for layer, of_layer in zip(model.model.layers, kept, strict=True)
    ]
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens])).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits[0].float().log_softmax(-1)
