"""What the checks of requests take for granted about SGLang's."""

import dataclasses
from array import array
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sglang.srt.managers.io_struct import (
    GenerateReqInput,
    OpenSessionReqInput,
    TokenizedEmbeddingReqInput,
    TokenizedGenerateReqInput,
    msgpack_decode,
    msgpack_encode,
)
from sglang.srt.sampling.sampling_params import SamplingParams

from jenga_sglang.adapter.start.request_limits import (
    CONVERTED,
    HEAVY,
    limits_of,
    unreadable,
    unreadable_sampling,
)
from jenga_sglang.request_checks import CHECKS, SAMPLE_CHECKS, SAMPLING_CHECKS, refusal

MODEL = SimpleNamespace(
    vocab_size=100,
    hidden_size=4,
    hf_config=SimpleNamespace(image_token_index=256, pad_token_id=101),
)


def names(kind: Any) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def tokenized(**fields: Any) -> TokenizedGenerateReqInput:
    base: dict[str, Any] = {
        "input_text": None,
        "input_ids": array("q", [5, 6]),
        "input_embeds": None,
        "mm_inputs": None,
        "token_type_ids": None,
        "sampling_params": SamplingParams(),
        "return_logprob": False,
        "logprob_start_len": -1,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "stream": False,
    }
    return TokenizedGenerateReqInput(**base | fields)


def test_the_fields_of_the_list_are_sglangs() -> None:
    given = {field.name for field in dataclasses.fields(GenerateReqInput)}
    assert set(CHECKS) <= names(TokenizedGenerateReqInput) & given
    assert set(SAMPLING_CHECKS) | set(SAMPLE_CHECKS) | set(CONVERTED) <= names(SamplingParams)
    assert set(HEAVY) <= names(TokenizedGenerateReqInput)


def test_the_rest_of_the_numbers_of_a_request_are_known() -> None:
    """A new field with a number in it is looked at before it is let through."""
    numbers = {
        field.name
        for kind in (TokenizedGenerateReqInput, TokenizedEmbeddingReqInput)
        for field in msgspec.structs.fields(kind)
        if "int" in str(field.type) or "float" in str(field.type)
    }
    # Routes between servers, what SGLang checks itself, and what is no index.
    others = {"bootstrap_port", "bootstrap_room", "decode_tp_size", "disagg_prefill_dp_rank"}
    others |= {"routed_dp_rank", "priority", "dimensions", "token_ids_logprob", "token_type_ids"}
    others |= {"num_items_assigned", "decision_layout", "kv_hints"}
    assert numbers - set(CHECKS) == others


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (tokenized(top_logprobs_num=1.5), "top_logprobs_num"),
        (tokenized(token_ids_logprob=[["x"]]), "token_ids_logprob"),
        (tokenized(sampling_params=SamplingParams(max_new_tokens=1.5)), "sampling_params.max_new"),
        (tokenized(priority=2**70), "priority"),
        (OpenSessionReqInput(capacity_of_str_len="x"), "capacity_of_str_len"),
        (OpenSessionReqInput(capacity_of_str_len=1, timeout="soon"), "timeout"),
    ],
)
def test_what_the_scheduler_cannot_read_is_refused_by_name(values: Any, name: str) -> None:
    with pytest.raises((msgspec.MsgspecError, OverflowError)):
        msgpack_decode(msgpack_encode(values))
    why = unreadable(values)
    assert why is not None and why.startswith(name) and "\n" not in why


def test_what_it_can_read_is_not() -> None:
    params = SamplingParams(logit_bias={"5": 1}, custom_params={"a": [1, "b"]}, stop_token_ids=[5])
    params.normalize(None)
    assert unreadable(tokenized(sampling_params=params, priority=-3)) is None
    assert unreadable(OpenSessionReqInput(capacity_of_str_len=1000, timeout=1)) is None


def test_sampling_parameters_are_read_as_the_caller_gave_them() -> None:
    legal = {"temperature": 0, "top_p": None, "stop": ["x"], "stop_token_ids": [None, 5], "no": {}}
    assert unreadable_sampling([legal, {}]) is None and unreadable_sampling(None) is None
    why = unreadable_sampling([legal, {"temperature": "hot"}])
    assert why is not None and why.startswith("sampling_params.temperature is 'hot'")


def test_limits_are_those_of_the_prompt() -> None:
    assert limits_of(tokenized(), MODEL).num_tokens == 2
    media = SimpleNamespace(
        __struct_fields__=("im_token_id",),
        im_token_id=300,
        mm_items=[SimpleNamespace(offsets=[(0, 1)]), SimpleNamespace(offsets=None)],
    )
    ids = array("q", [-1, 7 * 10**6, 300, 256, 101])
    limits = limits_of(tokenized(mm_inputs=media, input_ids=ids), MODEL)
    assert limits.num_tokens is None
    why = refusal(SimpleNamespace(input_ids=ids), limits)
    assert why is not None and "101 at position 4" in why
    assert refusal(SimpleNamespace(input_ids=ids[:4]), limits) is None
