"""A server that drafts: answers are the model's own, a grammar holds, sampling and aborts work, and
what drafts hold is shown and given back."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client import Client
from test_features import NUM_TOKENS, PROMPTS, assert_answers_are_right

NGRAM = (
    *("--speculative-algorithm", "NGRAM", "--speculative-ngram-max-bfs-breadth", "1"),
    *("--speculative-num-draft-tokens", "6", "--max-running-requests", "16"),
)
POOL = ("--page-size", "16", "--max-total-tokens", "20000", "--chunked-prefill-size", "512")


@pytest.fixture(scope="module")
def drafting(start_jenga: Callable[..., Client]) -> Client:
    return start_jenga(*NGRAM, *POOL, "--grammar-backend", "xgrammar", "--enable-metrics")


@pytest.mark.long
class TestDrafting:
    def test_answers_are_the_models(self, drafting: Client, taught_model: Path) -> None:
        """Each is asked twice: the second time it can be foreseen."""
        assert_answers_are_right(drafting, taught_model)
        answer = drafting.generate(PROMPTS[4], NUM_TOKENS)
        assert answer["meta_info"]["spec_verify_ct"] < NUM_TOKENS - 1

    @pytest.mark.parametrize("pattern", [r"[ab]{5}c", r"(\d{3}-){2}\d{4}"])
    def test_a_grammar_holds(self, pattern: str, drafting: Client) -> None:
        for _ in range(2):
            answer = drafting.generate(PROMPTS[3], 20, sampling={"regex": pattern})
            assert re.fullmatch(pattern, answer["text"])
        drafting.assert_clean()

    def test_sampling_goes_on_beside_it(self, drafting: Client) -> None:
        def ask(number: int) -> int:
            sampling = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
            answer = drafting.generate(PROMPTS[number % 5], 16, sampling=sampling)
            return len(answer["output_ids"])

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(12))) == [16] * 12
        drafting.assert_clean()

    def test_who_is_aborted_gives_its_drafts_back(self, drafting: Client) -> None:
        def ask(number: int) -> str:
            answer = drafting.generate(PROMPTS[number], 4000, rid=f"long {number}")
            return str(answer["meta_info"]["finish_reason"]["type"])

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(4)]
            while not any(group["draft_bytes"] for group in drafting.facts()["groups"]):
                assert not all(answer.done() for answer in asked)
            for number in range(4):
                drafting.request("POST", "/abort_request", {"rid": f"long {number}"})
            assert {answer.result() for answer in asked} == {"abort"}
        drafting.assert_clean()

    def test_nothing_is_held_in_the_end(self, drafting: Client) -> None:
        groups = drafting.facts()["groups"]
        assert [group["draft_bytes"] for group in groups] == [0] * len(groups)
        assert [group["draft_layers"] for group in groups] == [0] * len(groups)
