"""What a server has learnt of its speed, against what SGLang's metrics say of the same steps."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from statistics import median

import pytest
from client import Client
from test_features import prompt

from jenga_sglang.adapter.cache.measured import ASK_EVERY_STEPS
from jenga_sglang.core.prices import Rate

PROMPT_TOKENS = 256  # in one step
TOLD = 1  # times, at least
SEEDS = count(10_000)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def learnt(server: Client) -> int:
    """Tokens of prompts in a second."""
    per_second: int = server.facts()["host"]["prompt_tokens_per_second"]
    return per_second


def forward_ns(server: Client) -> int:
    """What all steps with prompts have taken by SGLang's count."""
    _, text = server.request("GET", "/metrics")
    name = r"sglang:per_stage_req_latency_seconds_sum"
    found = re.findall(rf'^{name}{{.*stage="prefill_forward".*}} (\S+)$', text, re.MULTILINE)
    return int(sum(map(float, found)) * 1e9)


def test_the_rate_of_prompts_is_that_of_sglangs_own_clock(
    start_jenga: Callable[..., Client],
) -> None:
    """Both count the same steps, so it does not matter what else runs on this machine."""
    pool = ("--max-total-tokens", "4000", "--page-size", "16", "--enable-metrics")
    server = start_jenga(*pool, "--enable-hierarchical-cache", "--hicache-ratio", "12")
    profile, tokens, before, began_ns = Rate(), 0, 0, 0
    for n in range((TOLD + 1) * ASK_EVERY_STEPS):
        # Of one token: SGLang's count of a step goes on while another is launched behind it.
        server.generate(prompt(PROMPT_TOKENS, n), 1)
        tokens += PROMPT_TOKENS
        if (rate := learnt(server)) != before:
            ended_ns = forward_ns(server)
            # What warmed the server up is in the first one: it has few tokens.
            profile.learn(tokens, ended_ns - began_ns)
            tokens, before, began_ns = 0, rate, ended_ns
    assert before and before == pytest.approx(profile.per_second, rel=0.2)


FEW_TOKENS, MANY_TOKENS = 24, 88
SHORT_PROMPT, LONG_PROMPT = 64, 1024
TIMES = 5


def seconds(server: Client, requests: int, prompt_tokens: int, output_tokens: int) -> float:
    """From when so many requests come at once to when the last has been answered; the median."""
    taken = []
    for _ in range(TIMES):
        prompts = [prompt(prompt_tokens, next(SEEDS)) for _ in range(requests)]
        with ThreadPoolExecutor(requests) as pool:
            began = time.monotonic()
            list(pool.map(lambda ids: server.generate(ids, output_tokens), prompts))
            taken.append(time.monotonic() - began)
    return median(taken)


def test_the_cost_of_a_step_is_what_a_client_finds(start_jenga: Callable[..., Client]) -> None:
    """The client finds what a step takes by asking for more tokens, of one request and of eight,
    and what a token of a prompt takes by sending more of them."""
    server = start_jenga("--max-total-tokens", "30000", "--page-size", "16")
    step_seconds = {}
    for requests in (1, 8):
        few, many = (seconds(server, requests, 16, n) for n in (FEW_TOKENS, MANY_TOKENS))
        step_seconds[requests] = (many - few) / (MANY_TOKENS - FEW_TOKENS)
    short, long = (seconds(server, 1, n, 1) for n in (SHORT_PROMPT, LONG_PROMPT))
    for _ in range(ASK_EVERY_STEPS // TIMES):
        seconds(server, 1, LONG_PROMPT, 1)
    token_seconds = (long - short) / (LONG_PROMPT - SHORT_PROMPT)
    request_seconds = max(0.0, step_seconds[8] - step_seconds[1]) / 7
    found = (step_seconds[1] - request_seconds) / token_seconds
    assert server.facts()["measured_step_tokens"] == pytest.approx(found, rel=0.2)
