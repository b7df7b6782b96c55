"""Numbers that would end the server for everybody are refused, by field and range, and the next
request is answered."""

import json
from typing import Any

import pytest
from client import Client

GOOD = {"input_ids": [40, 41, 42], "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
CHAT = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "default", "prompt": "hi", "max_tokens": 2}


def sampling(**parameters: Any) -> dict[str, Any]:
    return {"sampling_params": {"max_new_tokens": 2, **parameters}}


# Endpoint, what is added to a good request, and the words that the refusal must have.
BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("/generate", {"input_ids": [40, -1, 42]}, ("input_ids", "-1 at position 1", "0 to 31999")),
    ("/generate", {"input_ids": [40, 10**9]}, ("input_ids", "1000000000", "0 to 31999")),
    ("/generate", {"input_ids": [[40], [40, -7]]}, ("input_ids", "-7", "0 to 31999")),
    (
        "/generate",
        {"return_logprob": True, "logprob_start_len": -5},
        ("logprob_start_len is -5", "0 to 3"),
    ),
    (
        "/generate",
        {"return_logprob": True, "logprob_start_len": 4},
        ("logprob_start_len is 4", "0 to 3"),
    ),
    (
        "/generate",
        {"return_logprob": True, "top_logprobs_num": 100_000},
        ("top_logprobs_num", "100000", "0 to 32000"),
    ),
    (
        "/generate",
        {
            "input_ids": [[40], [41]],
            "return_logprob": [True, True],
            "top_logprobs_num": [1, 100_000],
        },
        ("top_logprobs_num", "100000", "0 to 32000"),
    ),
    ("/generate", {"token_ids_logprob": [10**6]}, ("token_ids_logprob", "32000")),
    ("/generate", sampling(top_k=2**40), ("sampling_params.top_k", "2147483647")),
    # SGLang's own schema of this endpoint, which names no field.
    ("/generate", sampling(top_k=2.5), ("`2.5`, expected i64",)),
    ("/generate", sampling(temperature="hot"), ("expected f64",)),
    ("/generate", sampling(custom_params={"a": [[1]]}), ("sampling_params.custom_params",)),
    (
        "/generate",
        sampling(max_new_tokens=None, min_new_tokens=2**40),
        ("sampling_params.min_new_tokens", "2147483647"),
    ),
    (
        "/generate",
        sampling(min_new_tokens=1, stop_token_ids=[40_000]),
        ("sampling_params.stop_token_ids is 40000", "0 to 31999"),
    ),
    ("/generate", sampling(logit_bias={"40000": 1.0}), ("logit_bias", "31999", "40000")),
    ("/generate", sampling(logit_bias={"5": 1e300}), ("sampling_params.logit_bias", "1e+30")),
    ("/generate", sampling(repetition_penalty=1e-300), ("sampling_params.repetition_penalty",)),
    ("/generate", sampling(n=10**9), ("sampling_params.n", "4096")),
    ("/generate", sampling(beam_width=4), ("sampling_params.beam_width", "--memory-backend")),
    (
        "/generate",
        sampling(max_new_tokens=0) | {"token_indices_to_pool": [3]},
        ("token_indices_to_pool is 3", "0 to 2"),
    ),
    ("/generate", {"session_params": {"id": "x", "offset": "no"}}, ("session_params.offset",)),
    ("/v1/completions", {"prompt": [40, -1]}, ("input_ids (a token of prompt", "-1")),
    ("/v1/completions", {"logprobs": 100_000}, ("logprobs", "100000", "0 to 32000")),
    ("/v1/completions", {"n": 10**9}, ("sampling_params.n", "4096")),
    (
        "/v1/chat/completions",
        {"logprobs": True, "top_logprobs": 100_000},
        ("top_logprobs", "0 to 32000"),
    ),
    ("/v1/chat/completions", {"top_k": 2**40}, ("sampling_params.top_k", "2147483647")),
    ("/v1/score", {"items": [[40], [-3]]}, ("input_ids", "-3")),
    ("/v1/score", {"label_token_ids": [10**6]}, ("1000000", "vocab")),
]
BASES = {
    "/generate": GOOD,
    "/v1/completions": TEXT,
    "/v1/chat/completions": CHAT,
    "/v1/score": {"query": [40, 41], "items": [[42]], "label_token_ids": [50], "model": "default"},
}


@pytest.mark.parametrize(
    ("path", "added", "said"), BAD, ids=[f"{path}-{json.dumps(more)}" for path, more, _ in BAD]
)
def test_a_bad_number_is_refused_and_the_next_request_answered(
    server: Client, path: str, added: dict[str, Any], said: tuple[str, ...]
) -> None:
    status, text = server.request("POST", path, BASES[path] | added)
    assert status == 400 and all(words in text for words in said), (status, text)
    for base in {path, "/generate"}:
        status, text = server.request("POST", base, BASES[base])
        assert status == 200, text


def test_a_stream_is_refused_in_its_first_event(server: Client) -> None:
    (event,) = server.stream("/generate", GOOD | {"input_ids": [-1], "stream": True})
    assert event["error"]["code"] == 400 and "input_ids" in event["error"]["message"]


@pytest.mark.parametrize("body", [{"capacity_of_str_len": "x"}, {"capacity_of_str_len": 2**70}])
def test_a_session_of_no_capacity_is_refused(server: Client, body: dict[str, Any]) -> None:
    status, _ = server.request("POST", "/open_session", body)
    assert status in (400, 422)
    assert server.request("POST", "/generate", GOOD)[0] == 200


def test_nothing_is_lost(server: Client) -> None:
    server.assert_clean()
