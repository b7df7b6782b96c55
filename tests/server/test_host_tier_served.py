"""A server with host memory below a pool of a fifth of what is asked about."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from client import Client
from test_features import assert_ranks_agree, cached_tokens, prompt

PAGE_SIZE = 16
PROMPTS = [prompt(length, 1000 + length) for length in (1500, 1410, 1320, 1230, 1140, 1050)]
NUM_TOKENS = 24

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module", params=["write_through", "write_through_selective", "write_back"])
def tiers(request: pytest.FixtureRequest, start_jenga: Callable[..., Client]) -> Iterator[Client]:
    pool = ("--max-total-tokens", "1600", "--page-size", str(PAGE_SIZE))
    host = ("--enable-hierarchical-cache", "--hicache-ratio", "12")
    seen = ("--enable-metrics", "--enable-cache-report", "--chunked-prefill-size", "256")
    policy = ("--hicache-write-policy", request.param)
    server = start_jenga(*pool, *host, *policy, *seen, env={"JENGA_POISON_FREED": "1"})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def expected(start_jenga: Callable[..., Client]) -> list[list[int]]:
    """The answers of a server without a host, whose pool holds everything."""
    server = start_jenga("--max-total-tokens", "30000", "--page-size", str(PAGE_SIZE))
    answers = [server.generate(ids, NUM_TOKENS)["output_ids"] for ids in PROMPTS]
    server.stop()
    return answers


def details(answer: Any) -> tuple[int, int]:
    """Tokens of the hit that the device had, and that came from the host."""
    found = answer["meta_info"]["cached_tokens_details"]
    return found["device"], found["host"]


def test_a_prompt_that_left_the_pool_is_hit_in_the_host(
    tiers: Client, expected: list[list[int]]
) -> None:
    tiers.flush_cache()
    for ids, tokens in zip(PROMPTS, expected, strict=True):
        answer = tiers.generate(ids, NUM_TOKENS)
        assert (answer["output_ids"], cached_tokens(answer)) == (tokens, 0)
    for ids, tokens in zip(PROMPTS, expected, strict=True):
        answer = tiers.generate(ids, NUM_TOKENS)
        assert answer["output_ids"] == tokens
        # All whole pages but the one with the last token, which is computed again.
        assert cached_tokens(answer) == (len(ids) - 1) // PAGE_SIZE * PAGE_SIZE
        device, host = details(answer)
        assert device + host == cached_tokens(answer) and host > 0
    facts = tiers.facts()["host"]
    assert facts["hit_tokens"] > 0
    assert all(group["loaded_bytes"] for group in facts["groups"])
    assert tiers.metric("sglang:jenga_host_hit_tokens_total") > 0
    tiers.assert_clean()


def test_all_at_once_and_aborted_answers_are_right(
    tiers: Client, expected: list[list[int]]
) -> None:
    for _ in range(2):
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            answers = list(pool.map(lambda ids: tiers.generate(ids, NUM_TOKENS), PROMPTS))
        assert [answer["output_ids"] for answer in answers] == expected
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            waiting = [pool.submit(tiers.generate, ids, 400) for ids in PROMPTS]
            tiers.request("POST", "/abort_request", {"abort_all": True})
            assert all(future.result()["meta_info"]["finish_reason"] for future in waiting)
    tiers.assert_clean()


def test_a_flush_empties_the_host(tiers: Client) -> None:
    tiers.generate(PROMPTS[0], 1)
    tiers.flush_cache()
    assert cached_tokens(tiers.generate(PROMPTS[0], 1)) == 0
    tiers.flush_cache()
    facts = tiers.facts()["host"]
    assert facts["free_large_pages"] == facts["num_large_pages"]


def test_two_ranks_decide_alike_over_host_memory(
    start_jenga: Callable[..., Client], expected: list[list[int]]
) -> None:
    pool = ("--tp", "2", "--max-total-tokens", "1600", "--page-size", str(PAGE_SIZE))
    host = ("--enable-hierarchical-cache", "--hicache-ratio", "12")
    policy = ("--hicache-write-policy", "write_back", "--chunked-prefill-size", "256")
    server = start_jenga(*pool, *host, *policy, env={"JENGA_LOG_DIGEST": "1"})
    for _ in range(2):
        for ids, tokens in zip(PROMPTS, expected, strict=True):
            assert server.generate(ids, NUM_TOKENS)["output_ids"] == tokens
    assert server.facts()["host"]["hit_tokens"] > 0
    server.assert_clean()
    assert_ranks_agree(server, checks=3)
