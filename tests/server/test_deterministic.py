"""`--enable-deterministic-inference`: a request's answer and log-probabilities have the same bits
whatever it is computed beside, and whether its prefix was cached or not."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from client import Client
from models.released import RELEASED
from models.tiny import ARCHITECTURES, write_model

# Its servers are its own: no need to stay with the tests of the shared one.
pytestmark = pytest.mark.xdist_group("deterministic")

PAGE = 16
FLAGS = ("--page-size", str(PAGE), "--max-total-tokens", "8000", "--chunked-prefill-size", "128")
TWO_RANKS = ("--tp-size", "2")
MODELS = (
    pytest.param("gemma3", (), id="gemma3"),
    pytest.param("gemma3", TWO_RANKS, id="gemma3-tp2", marks=pytest.mark.long),
    *(
        pytest.param(name, (), id=name, marks=pytest.mark.long)
        for name in ("llama", "gpt_oss", "llama4", "deepseek_v3", "qwen3_moe")
    ),
)
draw = random.Random(0)
TARGET = [draw.randrange(32, 120) for _ in range(150)]
OTHERS = [[draw.randrange(32, 120) for _ in range(draw.randrange(1, 200))] for _ in range(15)]


def answers(server: Client, prompts: Sequence[list[int]], num_tokens: int = 8, **more: Any) -> Any:
    """One batch of requests."""
    return server.generate(prompts, num_tokens, return_logprob=True, **more)


def bits(answer: Any) -> tuple[list[int], list[float]]:
    """Tokens and their log-probabilities, which JSON gives in full."""
    logprobs = answer["meta_info"]["output_token_logprobs"]
    return answer["output_ids"], [logprob for logprob, *_ in logprobs]


def of_prompt(answer: Any) -> list[float | None]:
    return [logprob for logprob, *_ in answer["meta_info"]["input_token_logprobs"]]


@pytest.mark.parametrize(("name", "ranks"), MODELS)
def test_an_answer_has_the_same_bits_in_every_batch_and_behind_every_hit(
    name: str, ranks: tuple[str, ...], start_jenga: Callable[..., Client], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", RELEASED.get(name) or ARCHITECTURES[name], seed=0)
    server = start_jenga(*FLAGS, "--enable-deterministic-inference", *ranks, model=model)
    (alone,) = answers(server, [TARGET])
    few = (name, ranks) == MODELS[0].values
    for size in (2, 5) if few else (1, 2, 5, 15):
        for place in (0, size):
            others = OTHERS[:size]
            batch = [*others[:place], TARGET, *others[place:]]
            server.flush_cache()
            assert bits(answers(server, batch)[place]) == bits(alone)
            hit = answers(server, batch)[place]
            assert hit["meta_info"]["cached_tokens"] == len(TARGET) // PAGE * PAGE
            assert bits(hit) == bits(alone)
    for cut in (PAGE - 1, 128) if few else (1, 15, 16, 17, 47, 48, 49, 128, len(TARGET) - 1):
        server.flush_cache()
        server.generate(TARGET[:cut], 1)
        assert bits(answers(server, [TARGET, *OTHERS[:3]])[0]) == bits(alone)
    compare_prompts(server, alone)
    compare_next_turns(server)
    compare_draws(server)
    server.assert_clean()
    server.process.terminate()


def compare_prompts(server: Client, alone: Any) -> None:
    """Log-probabilities of a prompt's own tokens."""
    (one,) = answers(server, [TARGET], logprob_start_len=0)
    beside = answers(server, [*OTHERS[:4], TARGET], logprob_start_len=0)[-1]
    assert len(of_prompt(one)) == len(TARGET)
    assert of_prompt(one) == of_prompt(beside)
    assert bits(one) == bits(beside) == bits(alone)


def compare_next_turns(server: Client) -> None:
    """What a decode wrote is what a prompt would have written."""
    server.flush_cache()
    (first,) = answers(server, [TARGET], 40)
    turn = [*TARGET, *first["output_ids"], 50, 51]
    (behind_hit,) = answers(server, [turn])
    assert behind_hit["meta_info"]["cached_tokens"] > len(TARGET)
    server.flush_cache()
    (anew,) = answers(server, [turn])
    assert anew["meta_info"]["cached_tokens"] == 0
    assert bits(behind_hit) == bits(anew)


def compare_draws(server: Client) -> None:
    """A seed and a place decide what is drawn."""
    drawn = {"temperature": 1.0, "sampling_seed": 7}
    (alone,) = answers(server, [TARGET], 16, sampling=drawn)
    beside = answers(server, [*OTHERS[:5], TARGET], 16, sampling=drawn)[-1]
    other = answers(server, [TARGET], 16, sampling=drawn | {"sampling_seed": 8})[0]
    assert bits(alone) == bits(beside)
    assert other["output_ids"] != alone["output_ids"]
