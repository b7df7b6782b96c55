"""Prompts computed by one server and answered by another, against one server that does both.

Real schedulers, SGLang's own queues and transfer workers; the wire is a socket (`e2e.loopback`).
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.engine import Job, run_jobs
from e2e.loopback import ENVIRONMENT, Wire, jobs_of_which_one_dies, pair_jobs
from e2e.queues import DECODE, PREFILL
from e2e.stream import TOKENS, Request

PAGE = 16
STOCK_FIRST = ("stock", "jenga")
CHUNK = 128
WINDOW = 48  # of the tiny models that have one
# page ± 1, window ± 1, chunk edges, and a prompt in several chunks
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 255, 256, 257, 600)
FLAGS: dict[str, Any] = {
    "memory_backend": "jenga",
    "dtype": "float32",
    "device": "cpu",
    "page_size": PAGE,
    "chunked_prefill_size": CHUNK,
    "random_seed": 0,
    # Without them a pool of states takes most of the memory.
    "max_running_requests": 8,
    "max_mamba_cache_size": 40,
}


def prompts(lengths: tuple[int, ...], seed: int, most: int = 24) -> list[Request]:
    draw = random.Random(seed)
    drawn = [[draw.choice(TOKENS) for _ in range(n)] for n in lengths]
    # Once more, from what the prefill server has cached by then, and a prompt that goes on.
    again = [*drawn[-3:], drawn[-1] + drawn[0]]
    return [Request(p, draw.randint(2, most), ignore_eos=True) for p in [*drawn, *again]]


def run_three(
    tmp_path: Path, model: Path, requests: list[Request], **sides: Any
) -> tuple[Any, Any, Any]:
    flags = {**FLAGS, "model_path": str(model), "max_total_tokens": 4096}
    jobs = pair_jobs(flags, requests, **sides)
    jobs["alone"] = Job(flags, requests, logprobs=False)
    reports = run_jobs(jobs, tmp_path)
    return reports["prefill"], reports["decode"], reports["alone"]


LONG_KINDS = ("falcon_h1", "lfm2", "minicpm3", "falcon_mamba")


@pytest.mark.parametrize(
    "kind",
    [
        *("llama", "gemma3", "qwen3_5"),
        *(pytest.param(kind, marks=pytest.mark.long) for kind in LONG_KINDS),
    ],
)
def test_a_pair_answers_as_one_server_does(
    kind: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    requests = prompts(LENGTHS, seed=1)
    smaller = {"max_total_tokens": 3072}
    prefill, decode, alone = run_three(tmp_path, tiny_model(kind), requests, decode=smaller)
    for number, (pair, one) in enumerate(zip(decode.answers, alone.answers, strict=True)):
        assert pair.tokens == one.tokens, (number, len(requests[number].prompt))
        assert pair.finish_reason == "length"
        assert prefill.answers[number].tokens == one.tokens[:1]
    assert prefill.cached_tokens > 0
    traffic = prefill.after
    assert traffic.sent_bytes == traffic.needed_bytes > 0


def test_nothing_of_a_prefix_that_the_answering_server_has_cached_is_sent(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    requests = prompts((65, 129, 300), seed=2)
    requests += [Request(r.prompt + r.prompt[:40], 8, ignore_eos=True) for r in requests[:3]]
    caching = {"disaggregation_decode_enable_radix_cache": True}
    prefill, decode, alone = run_three(
        tmp_path, tiny_model("gemma3"), requests, decode=caching, concurrency=1
    )
    assert [a.tokens for a in decode.answers] == [a.tokens for a in alone.answers]
    assert 0 < prefill.after.sent_bytes < prefill.after.needed_bytes * 0.7


@pytest.mark.parametrize("kind", [pytest.param("gemma3", marks=pytest.mark.long), "lfm2"])
def test_a_request_that_gives_way_goes_on_where_it_was(
    kind: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    draw = random.Random(3)
    requests = [
        Request([draw.choice(TOKENS) for _ in range(50 + 7 * i)], 150, ignore_eos=True)
        for i in range(8)
    ]
    scarce = {"max_total_tokens": 512, "num_reserved_decode_tokens": 1, "max_mamba_cache_size": 10}
    _, decode, alone = run_three(tmp_path, tiny_model(kind), requests, decode=scarce)
    assert [a.tokens for a in decode.answers] == [a.tokens for a in alone.answers]
    assert decode.retractions > 0


def test_aborts_leave_nothing_behind(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Whatever the phase; the leak checks of both servers end the process otherwise."""
    requests = prompts((300, 40, 129, 600, 48, 200, 33, 150), seed=4, most=40)
    aborts = {number: 3 * number for number in range(0, len(requests), 2)}
    _, decode, alone = run_three(tmp_path, tiny_model("gemma3"), requests, aborts=aborts)
    for number, (pair, one) in enumerate(zip(decode.answers, alone.answers, strict=True)):
        if number not in aborts:
            assert pair.tokens == one.tokens
        else:
            assert pair.tokens == one.tokens[: len(pair.tokens)]
    reasons = [decode.answers[number].finish_reason for number in aborts]
    assert "abort" in reasons


@pytest.mark.parametrize("kind", [pytest.param("llama", marks=pytest.mark.long), "gemma3"])
def test_a_pair_sends_no_more_than_stocks_pair(
    kind: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same tokens; all layers of Llama keep everything, and are sent byte for byte as much. Of
    Gemma-3 stock keeps full rows on every layer, and sends them."""
    flags = {**FLAGS, "model_path": str(tiny_model(kind)), "max_total_tokens": 4096}
    requests = prompts((17, 64, 129, 300, 600), seed=6)
    memory = {"disaggregation_decode_retraction_backup": "cpu_tensor", "hicache_ratio": 1}
    stock = flags | memory | {"memory_backend": "default"}
    jobs = {f"jenga {name}": job for name, job in pair_jobs(flags, requests).items()}
    jobs |= {f"stock {name}": job for name, job in pair_jobs(stock, requests).items()}
    reports = run_jobs(jobs, tmp_path)
    tokens = {who: [a.tokens for a in reports[f"{who} decode"].answers] for who in STOCK_FIRST}
    assert tokens["jenga"] == tokens["stock"]
    sent = {who: reports[f"{who} prefill"].after.sent_bytes for who in STOCK_FIRST}
    assert sent["stock"] > 0
    if kind == "llama":
        assert sent["jenga"] == sent["stock"]
    else:
        assert sent["jenga"] < sent["stock"] / 2


@pytest.mark.parametrize("side", [pytest.param("prefill", marks=pytest.mark.long), "decode"])
def test_an_abort_in_any_queue_leaves_nothing_behind(
    side: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """One server aborts a request in each of its queues; the other learns of it, or is done."""
    # A prompt waits while the one before it is computed; at the decode server, for a row.
    queues, first, rows = {"prefill": (PREFILL, 1, 8), "decode": (DECODE, 5, 2)}[side]
    requests = [Request(r.prompt, 60, ignore_eos=True) for r in prompts((300,) * 8, seed=7)[:8]]
    aborts = {side: dict(enumerate(queues, start=first))}
    flags = {**FLAGS, "model_path": str(tiny_model("gemma3")), "max_total_tokens": 4096}
    few = {"max_running_requests": rows}
    jobs = pair_jobs(flags, requests, wire=Wire(seconds=0.3), aborts_in=aborts, decode=few)
    jobs["alone"] = Job(flags, requests, logprobs=False)
    reports = run_jobs(jobs, tmp_path)
    ended = [answer.finish_reason for answer in reports[side].answers]
    assert [n for n, reason in enumerate(ended) if reason == "abort"] == [*aborts[side]]
    for number, alone in enumerate(reports["alone"].answers):
        if number not in aborts[side]:
            assert reports["decode"].answers[number].tokens == alone.tokens


@pytest.mark.parametrize("mode", ["prefill", pytest.param("decode", marks=pytest.mark.long)])
def test_a_server_killed_in_mid_transfer_takes_only_its_own_requests_along(
    mode: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """One of two dies with half of an item on the wire; whoever served both goes on with the other,
    and its leak checks find nothing."""
    flags = {**FLAGS, "model_path": str(tiny_model("gemma3")), "max_total_tokens": 4096}
    requests = prompts((300, 310, 129, 140, 600, 590, 48, 50, 33, 40), seed=8)[:10]
    jobs = jobs_of_which_one_dies(flags, requests, mode=mode, items=5)
    alone = run_jobs({"alone": Job(flags, requests, logprobs=False)}, tmp_path)["alone"].answers
    reports = run_jobs(jobs, tmp_path, killed=["doomed"])
    for number, answer in enumerate(reports["other"].answers):
        served = answer if mode == "prefill" else reports["spare"].answers[number // 2]
        if number % 2:
            assert served.tokens == alone[number].tokens, number
        else:
            assert answer.finish_reason in ("abort", "length")
    ended = [reports["other"].answers[n].finish_reason for n in range(0, len(requests), 2)]
    assert "abort" in ended


def test_a_decode_server_without_room_says_so_and_goes_on(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that never fits is refused there, and given up by the prefill server; many that fit
    one by one wait for each other."""
    monkeypatch.setitem(ENVIRONMENT, "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "30")
    requests = prompts((900, 200, 210, 220, 190, 205), seed=9)[:6]
    scarce = {"max_total_tokens": 384, "num_reserved_decode_tokens": 1}
    _, decode, alone = run_three(tmp_path, tiny_model("llama"), requests, decode=scarce)
    assert decode.answers[0].finish_reason == "abort"
    assert [a.tokens for a in decode.answers[1:]] == [a.tokens for a in alone.answers[1:]]


@pytest.mark.parametrize("side", [pytest.param("prefill", marks=pytest.mark.long), "decode"])
def test_servers_of_other_layouts_are_told_so_and_go_on(
    side: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the two has SGLang's own memory: not a byte is sent, and both come to rest."""
    # So long does a stock prefill server wait for a decode server that has given up.
    monkeypatch.setitem(ENVIRONMENT, "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "60")
    flags = {**FLAGS, "model_path": str(tiny_model("gemma3")), "max_total_tokens": 4096}
    stock = {"memory_backend": "default"}
    if side == "decode":
        stock |= {"disaggregation_decode_retraction_backup": "cpu_tensor", "hicache_ratio": 1}
    requests = prompts((17, 40), seed=5)
    reports = run_jobs(pair_jobs(flags, requests, **{side: stock}), tmp_path)
    assert {answer.finish_reason for answer in reports["decode"].answers} == {"abort"}
    assert reports["prefill"].after.sent_bytes == 0
    other = "prefill" if side == "decode" else "decode"
    assert "--memory-backend jenga" in (tmp_path / other).read_text()
