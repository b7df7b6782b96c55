"""Drafts on two ranks, each with a part of every layer and a pool of its own."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client import Client
from e2e.hugging_face import greedy_tokens
from models.tiny import make_tiny_model

NUM_TOKENS = 24
DRAFTING = (
    *("--tp-size", "2", "--page-size", "16", "--max-total-tokens", "4000"),
    *("--speculative-algorithm", "NGRAM", "--speculative-ngram-max-bfs-breadth", "1"),
    *("--speculative-num-draft-tokens", "6", "--max-running-requests", "8"),
)
# Tests compare to the last bits.
EXACT = {"SGLANG_MAMBA_CONV_DTYPE": "float32"}


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["gemma3", "qwen3_5"])
def test_two_ranks_answer_as_hugging_face_does(
    architecture: str, start_jenga: Callable[..., Client], tmp_path: Path
) -> None:
    """Windows, and recurrent states; both ranks must decide alike. Each is asked twice: the second
    time it can be foreseen."""
    model = make_tiny_model(tmp_path / "model", architecture)
    server = start_jenga(*DRAFTING, model=model, env=EXACT)
    rng = random.Random(4)
    prompts = [[rng.randrange(32, 120) for _ in range(20 + 9 * n)] for n in range(6)]

    def ask(prompt: list[int]) -> dict[str, Any]:
        return server.generate(prompt, NUM_TOKENS)

    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(ask, prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer["output_ids"] == greedy_tokens(model, prompt, NUM_TOKENS)
    verified = sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    assert verified < len(prompts) * (NUM_TOKENS - 1) / 2
    server.assert_clean()
