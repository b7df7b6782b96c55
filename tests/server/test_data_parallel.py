"""Several pools behind one server: replicas of the model, and ranks of data-parallel attention."""

import json
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client import Client
from e2e.hugging_face import token_logprobs
from models.released import RELEASED
from models.tiny import write_model

from jenga_sglang.cli import main

RANKS = 2
PUBLISHED_SECONDS = 60  # within 30 when idle

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def replicas(start_jenga: Callable[..., Client]) -> Client:
    return start_jenga("--dp-size", str(RANKS), "--enable-metrics", "--max-total-tokens", "20000")


def prompts(count: int) -> list[list[int]]:
    """Of lengths that no two ranks share."""
    drawn = random.Random(0)
    return [[drawn.randrange(32, 120) for _ in range(40 + 31 * i)] for i in range(count)]


def ask_at_once(server: Client, asked: list[list[int]]) -> list[Any]:
    with ThreadPoolExecutor(len(asked)) as clients:
        return list(clients.map(lambda prompt: server.generate(prompt, num_tokens=8), asked))


def stats(server: Client, query: str = "") -> Any:
    status, text = server.request("GET", f"/jenga/stats{query}")
    assert status == 200, text
    return json.loads(text)


def labels(server: Client, name: str) -> list[dict[str, str]]:
    _, text = server.request("GET", "/metrics")
    found = re.findall(rf"^{re.escape(name)}\{{(.*)\}} ", text, re.MULTILINE)
    return [dict(re.findall(r'(\w+)="([^"]*)"', one)) for one in found]


def ranks_of(series: list[dict[str, str]]) -> set[str]:
    return {one["dp_rank"] for one in series}


def test_every_replica_has_metrics_of_its_own(replicas: Client) -> None:
    ask_at_once(replicas, prompts(4))
    deadline = time.monotonic() + PUBLISHED_SECONDS
    both = {str(rank) for rank in range(RANKS)}
    while ranks_of(labels(replicas, "sglang:token_usage")) != both:
        assert time.monotonic() < deadline, "SGLang never published its own"
        time.sleep(0.5)
    stock = labels(replicas, "sglang:token_usage")
    ours = labels(replicas, "sglang:jenga_pool_bytes")
    assert sorted(map(str, ours)) == sorted(map(str, stock))
    assert ranks_of(labels(replicas, "sglang:jenga_prompt_tokens_total")) == both


def test_each_is_shown(replicas: Client, capsys: pytest.CaptureFixture[str]) -> None:
    asked = prompts(4)
    before = [rank["prompt_tokens"] for rank in stats(replicas)["ranks"]]
    ask_at_once(replicas, asked)
    answer = stats(replicas)
    assert [rank["dp_rank"] for rank in answer["ranks"]] == list(range(RANKS))
    counted = [rank["prompt_tokens"] for rank in answer["ranks"]]
    grown = [now - then for now, then in zip(counted, before, strict=True)]
    assert sum(grown) == sum(map(len, asked)) and all(grown)
    for rank in range(RANKS):
        alone = stats(replicas, f"?dp_rank={rank}")
        assert (alone["dp_rank"], alone["prompt_tokens"]) == (rank, counted[rank])
    assert main(["explain", replicas.url, "--prompt-tokens", "50"]) == 0
    assert main(["top", replicas.url, "--once"]) == 0
    said = capsys.readouterr().out
    assert all(said.count(f"rank {rank} of {RANKS}") == 2 for rank in range(RANKS))


def test_attention_of_two_ranks_answers_as_hugging_face_does(
    start_jenga: Callable[..., Client], tmp_path: Path
) -> None:
    """Ranks pad their batches to each other's; some are idle while others compute. SGLang has it
    for some models only: those that gather what their experts need."""
    model = write_model(tmp_path / "model", RELEASED["gpt_oss"], seed=0)
    flags = ("--dp-size", str(RANKS), "--tp-size", str(RANKS), "--enable-dp-attention")
    server = start_jenga(*flags, "--max-total-tokens", "20000", model=model)
    asked = prompts(7)
    answers = ask_at_once(server, asked)
    assert {a["meta_info"]["dp_rank"] for a in answers} == set(range(RANKS))
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer["output_ids"] == token_logprobs(model, prompt, answer["output_ids"])[0]
    alone = server.generate(asked[0], num_tokens=8)
    assert alone["output_ids"] == answers[0]["output_ids"]
    shown = stats(server)["ranks"]
    assert [rank["dp_rank"] for rank in shown] == list(range(RANKS))
    for rank in shown:
        assert not any(group["used_bytes"] for group in rank["groups"])
    server.assert_clean()
