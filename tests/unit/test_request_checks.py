"""Every number on the list: what a tensor of the scheduler's width takes is legal, nothing else."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jenga_sglang.request_checks import (
    CHECKS,
    MAX_LOGIT_BIAS,
    MAX_SAMPLES,
    SAMPLE_CHECKS,
    SAMPLING_CHECKS,
    Limits,
    refusal,
    samples_refusal,
)

VOCAB, HIDDEN = 100, 4
LIMITS = Limits(VOCAB, HIDDEN, num_tokens=10)
INTEGERS = st.one_of(st.integers(-VOCAB, 2 * VOCAB), st.integers(-(2**70), 2**70))


def embeds(num: int, hidden: int) -> SimpleNamespace:
    return SimpleNamespace(embeds=torch.zeros(num, hidden), positions=list(range(num)))


# Field, a legal value, an illegal one, and what the refusal says of the range.
TABLE: list[tuple[str, Any, Any, str]] = [
    ("input_ids", [0, VOCAB - 1], [40, -1], "0 to 99"),
    ("input_ids", [], [10**9], "0 to 99"),
    ("input_embeds", [[0.0] * HIDDEN], [[0.0] * HIDDEN, [0.0]], "rows of 4 numbers"),
    ("positional_embed_overrides", embeds(2, HIDDEN), embeds(2, HIDDEN + 1), "rows of 4 numbers"),
    ("positional_embed_overrides", embeds(10, HIDDEN), embeds(11, HIDDEN), "0 to 9"),
    ("logprob_start_len", -1, -5, "-1 for none of the prompt, or an integer from 0 to 10"),
    ("logprob_start_len", 10, 11, "0 to 10"),
    ("top_logprobs_num", VOCAB, 100_000, "0 to 100"),
    ("top_logprobs_num", 0, -1, "0 to 100"),
    ("token_indices_to_pool", [0, 9], [10], "0 to 9"),
    ("multi_item_delimiter_indices", [0, 9], [-1], "0 to 9"),
    ("routed_experts_start_len", 0, -1, "from 0 to"),
    ("sampling_params.top_k", 2**31 - 1, 2**31, "1 to 2147483647"),
    ("sampling_params.top_k", 1, 2.5, "1 to 2147483647"),
    ("sampling_params.min_new_tokens", 0, 2**40, "0 to 2147483647"),
    ("sampling_params.stop_token_ids", {0, 99}, {100}, "0 to 99"),
    ("sampling_params.logit_bias", {"5": -1e9}, {"5": math.nan}, "-1e+30 to 1e+30"),
    ("sampling_params.logit_bias", {"5": 100.0}, {"5": math.inf}, "-1e+30 to 1e+30"),
    ("sampling_params.repetition_penalty", 0.1, 1e-300, "1e-06 to 2"),
]


def asked(name: str, value: Any) -> SimpleNamespace:
    prefix, _, field = name.rpartition(".")
    values = SimpleNamespace(**{"min_new_tokens": 1, field: value})
    return SimpleNamespace(sampling_params=values) if prefix else values


def test_stop_tokens_are_indices_only_while_answers_may_not_end() -> None:
    """SGLang's own kits give a stop token of another model's vocabulary."""
    free = SimpleNamespace(min_new_tokens=0, stop_token_ids={119690})
    assert refusal(SimpleNamespace(sampling_params=free), LIMITS) is None
    free.min_new_tokens = 1
    assert "119690" in (refusal(SimpleNamespace(sampling_params=free), LIMITS) or "")


@pytest.mark.parametrize(("name", "good", "bad", "legal"), TABLE)
def test_a_refusal_names_field_value_and_range(name: str, good: Any, bad: Any, legal: str) -> None:
    assert refusal(asked(name, good), LIMITS) is None
    why = refusal(asked(name, bad), LIMITS)
    assert why is not None and why.startswith(name) and legal in why and "\n" not in why


def test_every_field_of_the_list_has_a_row_here() -> None:
    names = [*CHECKS, *(f"sampling_params.{name}" for name in SAMPLING_CHECKS)]
    assert set(names) == {row[0] for row in TABLE}


def test_a_field_that_is_not_given_is_legal() -> None:
    nothing = dict.fromkeys(CHECKS) | {"sampling_params": None}
    assert refusal(SimpleNamespace(**nothing), LIMITS) is None
    assert refusal(SimpleNamespace(), LIMITS) is None


@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(-5, VOCAB + 5)))
def test_legal_tokens_are_those_that_an_embedding_has_rows_for(ids: list[int]) -> None:
    refused = refusal(asked("input_ids", ids), LIMITS) is not None
    assert refused == bool(set(ids) - set(range(VOCAB)))


@pytest.mark.parametrize("name", ["top_k", "min_new_tokens"])
@given(value=INTEGERS)
def test_legal_numbers_fit_the_samplers_tensors(name: str, value: int) -> None:
    smallest = 1 if name == "top_k" else 0
    legal = value >= smallest and holds(value, torch.int32)
    assert (refusal(asked(f"sampling_params.{name}", value), LIMITS) is None) == legal


def holds(value: int, dtype: torch.dtype) -> bool:
    try:
        torch.tensor([value], dtype=dtype)
    except (RuntimeError, OverflowError, ValueError):
        return False
    return True


@given(value=INTEGERS)
def test_legal_top_logprobs_are_those_that_topk_finds(value: int) -> None:
    legal = value >= 0 and found(lambda: torch.zeros(1, VOCAB).topk(value))
    assert (refusal(asked("top_logprobs_num", value), LIMITS) is None) == legal


def found(compute: Callable[[], Any]) -> bool:
    try:
        compute()
    except (RuntimeError, OverflowError, TypeError, ValueError):
        return False
    return True


@given(st.floats())
def test_no_legal_bias_makes_probabilities_that_are_none(bias: float) -> None:
    if refusal(asked("sampling_params.logit_bias", {"5": bias}), LIMITS) is None:
        logits = torch.zeros(VOCAB) + 100
        logits[5] += bias
        assert torch.softmax(logits, 0).isfinite().all()
    else:
        assert not abs(bias) <= MAX_LOGIT_BIAS


class TestMedia:
    def test_tokens_that_stand_for_media_may_be_anything(self) -> None:
        limits = Limits(VOCAB, HIDDEN, free_positions=[(1, 2)], placeholders=frozenset({500}))
        assert refusal(asked("input_ids", [3, -7, 10**7, 500, 4]), limits) is None
        why = refusal(asked("input_ids", [3, -7, 10**7, -7, 4]), limits)
        assert why is not None and "is -7 at position 3" in why

    def test_the_length_of_such_a_prompt_is_not_known_yet(self) -> None:
        limits = Limits(VOCAB, HIDDEN)
        assert refusal(asked("logprob_start_len", 10**6), limits) is None
        assert refusal(asked("logprob_start_len", -2), limits) is not None


class TestSamples:
    @pytest.mark.parametrize("sampling", [None, {}, {"n": 1}, {"n": MAX_SAMPLES}, [{"n": 2}] * 2])
    def test_legal(self, sampling: Any) -> None:
        assert samples_refusal(sampling) is None

    @pytest.mark.parametrize("value", [0, -1, MAX_SAMPLES + 1, 1.5, "2", True])
    def test_illegal(self, value: Any) -> None:
        for sampling in ({"n": value}, [{"n": 1}, {"n": value}]):
            why = samples_refusal(sampling)
            assert why is not None and why.startswith(f"sampling_params.n is {value!r}; legal: ")

    def test_beam_search_is_refused_by_the_flag_that_forbids_it(self) -> None:
        assert samples_refusal({"beam_width": 1}) is None
        why = samples_refusal({"beam_width": 4})
        assert why is not None and why.startswith("sampling_params.beam_width is 4")
        assert "--memory-backend jenga" in why and "\n" not in why

    def test_the_list(self) -> None:
        assert set(SAMPLE_CHECKS) == {"n", "beam_width"}
