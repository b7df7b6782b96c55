"""Servers on a GPU: Jenga through FlashInfer and Triton gives what stock SGLang gives.

Weights and activations are bf16, so the logprobs of two kernels differ in the third decimal, and
where two tokens are about as likely either may come first. After that the answers are different
texts; they are compared up to there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e.stream import Request, StreamShape, make_stream
from models.tiny import ARCHITECTURES, MAX_LENGTH, Architecture, write_model

from jenga_sglang.adapter.host_copies import StreamCopies

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("flashinfer_modules")]

HEAD_DIM = 128
SHAPE = StreamShape(num_requests=40, longest_prompt=400, longest_answer=60)
# What bf16 makes of logprobs, and how close two tokens are that may swap.
LOGPROB_TOLERANCE = 0.1
TIE = 0.1
# What users of SGLang have: on Hopper its own FA3.
STOCK = {"memory_backend": "default"}
JENGA = {"memory_backend": "jenga"}
# Which backend answers, and the flags; FlashInfer is the default on a GPU.
SERVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("flashinfer", JENGA),
    "no graphs": ("flashinfer", JENGA | {"disable_cuda_graph": True}),
    "fa3": ("fa3", JENGA | {"attention_backend": "fa3"}),
    "triton": ("triton", JENGA | {"attention_backend": "triton"}),
}


@dataclass(frozen=True)
class Output:
    """Tokens of one answer, the logprob of each, and the two likeliest (logprob, token) there."""

    tokens: list[int]
    logprobs: list[float]
    likeliest: list[list[tuple[float, int]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp("model") / name
            made[name] = write_model(path, wide(ARCHITECTURES[name]), seed=7)
        return made[name]

    return make


def wide(kind: Architecture) -> Architecture:
    """The architecture with heads that FlashInfer's kernels are built for."""
    fields = kind.fields | {"head_dim": HEAD_DIM}
    if "query_pre_attn_scalar" in fields:
        fields["query_pre_attn_scalar"] = HEAD_DIM
    return replace(kind, fields=fields)


@contextmanager
def engine(path: Path, **flags: Any) -> Iterator[Any]:
    from sglang.srt.entrypoints.engine import Engine

    asked: dict[str, Any] = {
        "model_path": str(path),
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        "chunked_prefill_size": 128,
        "enable_mixed_chunk": True,
        "max_total_tokens": 2048,
        "context_length": MAX_LENGTH,
        "max_running_requests": 16,
        "cuda_graph_max_bs_decode": 16,
        "log_level": "warning",
    }
    made = Engine(**asked | flags)
    try:
        yield made
    finally:
        made.shutdown()


def answers(path: Path, requests: list[Request], **flags: Any) -> tuple[str, list[Output]]:
    """The attention backend that the server reports, and what it answered."""
    with engine(path, **flags) as made:
        outputs = ask(made, requests)
        return made.get_server_info()["attention_backend"], outputs


def ask(made: Any, requests: list[Request]) -> list[Output]:
    results = made.generate(
        input_ids=[request.prompt for request in requests],
        sampling_params=[
            {"max_new_tokens": r.max_new_tokens, "temperature": 0.0, "ignore_eos": True}
            for r in requests
        ],
        return_logprob=True,
        top_logprobs_num=2,
    )
    return [output(result) for result in results]


def output(result: dict[str, Any]) -> Output:
    meta = result["meta_info"]
    chosen = [(logprob, token) for logprob, token, _ in meta["output_token_logprobs"]]
    likeliest = [[(lp, token) for lp, token, _ in top] for top in meta["output_top_logprobs"]]
    return Output([token for _, token in chosen], [lp for lp, _ in chosen], likeliest)


def problem(stock: Output, ours: Output) -> str | None:
    """What differs beyond what bf16 explains, or None."""
    for index, (theirs, mine) in enumerate(zip(stock.tokens, ours.tokens, strict=False)):
        error = abs(stock.logprobs[index] - ours.logprobs[index])
        if theirs != mine:
            (best, _), (second, _) = stock.likeliest[index]
            near = best - second < TIE
            return None if near else f"token {index}: {mine}, stock {theirs}"
        if not error < LOGPROB_TOLERANCE:
            return f"logprob of token {index} is {error:.3f} off"
    return None if len(stock.tokens) == len(ours.tokens) else "another length"


def drafts(kind: str, path: Path) -> dict[str, Any]:
    """Flags of a server that drafts: of n-grams, or with the model as its own draft."""
    if kind == "n-grams":
        return {
            "enable_mixed_chunk": False,
            "speculative_algorithm": "NGRAM",
            "speculative_ngram_max_bfs_breadth": 1,
            "speculative_num_draft_tokens": 6,
        }
    return {
        "enable_mixed_chunk": False,
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": str(path),
        "speculative_num_steps": 5,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 6,
    }


@pytest.mark.parametrize("server", sorted(SERVERS.keys() - {"fa3"}))
@pytest.mark.parametrize(
    ("name", "kind"),
    [("gemma3", "n-grams"), ("gemma3", "its own draft"), ("qwen3_5", "n-grams")],
)
def test_drafts_change_no_answer(
    name: str, kind: str, server: str, model: Callable[[str], Path]
) -> None:
    """Verified, and drafted by a model, in CUDA graphs and without; over recurrent layers too."""
    requests = 2 * make_stream(SHAPE, seed=1)[: SHAPE.num_requests // 2]
    path = model(name)
    _, stock = answers(path, requests, **STOCK)
    _, ours = answers(path, requests, **SERVERS[server][1], **drafts(kind, path))
    found = [problem(s, o) for s, o in zip(stock, ours, strict=True)]
    assert not any(found), found
    same = sum(s.tokens == o.tokens for s, o in zip(stock, ours, strict=True))
    assert same > len(requests) // 2, f"only {same} answers are equal"


@pytest.mark.parametrize(
    ("name", "servers"),
    [("gemma3", ("default", "no graphs", "fa3", "triton")), ("llama", ("default",))],
)
def test_answers_are_stocks(
    name: str, servers: tuple[str, ...], model: Callable[[str], Path], is_hopper: bool
) -> None:
    requests = make_stream(SHAPE, seed=1)
    path = model(name)
    _, stock = answers(path, requests, **STOCK)
    for server in servers:
        if server == "fa3" and not is_hopper:
            continue
        expected_backend, flags = SERVERS[server]
        backend, ours = answers(path, requests, **flags)
        assert backend == expected_backend
        found = [problem(s, o) for s, o in zip(stock, ours, strict=True)]
        wrong = [f"request {i}: {text}" for i, text in enumerate(found) if text]
        assert not wrong, f"{name}, {server}: {wrong}"
        same = sum(s.tokens == o.tokens for s, o in zip(stock, ours, strict=True))
        assert same > len(requests) // 2, f"{name}, {server}: only {same} answers are equal"


@pytest.mark.parametrize("overlap", ["overlap", "no overlap"])
def test_what_comes_back_from_host_memory_changes_no_answer(
    overlap: str, model: Callable[[str], Path]
) -> None:
    """A pool so small that the second time each prompt comes it is in host memory."""
    requests = 2 * make_stream(SHAPE, seed=1)
    path = model("gemma3")
    _, stock = answers(path, requests, **STOCK)
    tiers = {"enable_hierarchical_cache": True, "hicache_ratio": 16.0, "max_total_tokens": 1024}
    tiers |= {"disable_overlap_schedule": overlap == "no overlap"}
    with engine(path, **JENGA, **tiers) as made:
        ours = ask(made, requests)
        host = made.get_server_info()["internal_states"][0]["jenga"]["host"]
    found = [problem(s, o) for s, o in zip(stock, ours, strict=True)]
    assert not any(found), found
    assert host["hit_tokens"] > 0 and all(group["loaded_bytes"] > 0 for group in host["groups"])


def test_pages_come_back_from_host_memory_as_they_went(device: torch.device) -> None:
    """By SGLang's kernel, on a stream on which they are written before and overwritten after."""
    stream = torch.cuda.Stream()
    copies = StreamCopies(device, stream)
    pool = torch.zeros(200, 425_984, dtype=torch.uint8, device=device)
    host = copies.allocate(300 * 425_984).view(300, -1)
    rng = np.random.default_rng(1)
    pages, places, others = rng.permutation(200)[:90], rng.permutation(300)[:90], np.arange(90)
    began = copies.mark()
    with copies.in_order():
        torch.cuda._sleep(10**8)
        pool.random_(0, 255)
        written = pool[torch.from_numpy(pages).to(device)]
        copies.copy(pool, pages, host, places)
        pool.fill_(7)
        copies.copy(host, places, pool, others)
    ended = copies.mark()
    copies.wait()
    assert torch.equal(host[torch.from_numpy(places)], written.cpu())
    assert torch.equal(pool[:90], written) and (pool[90:] == 7).all()
    assert copies.ns_between(began, ended) > 0
