"""What a server has learnt of its speed, against what SGLang's metrics say of the same steps."""

import re
from collections.abc import Callable

import pytest
from client import Client
from test_features import prompt

from jenga_sglang.adapter.cache.measured import ASK_EVERY_STEPS
from jenga_sglang.core.prices import Rate

PROMPT_TOKENS = 256  # in one step
TOLD = 1  # times, at least

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
