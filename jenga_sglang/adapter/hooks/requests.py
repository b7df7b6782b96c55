"""Where the tokenizer manager makes requests of what callers send. A ``ValueError`` here is a 400
over HTTP, and what `sgl.Engine` raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jenga_sglang.adapter.start.request_limits import limits_of, unreadable, unreadable_sampling
from jenga_sglang.hook import AFTER, AROUND, hook
from jenga_sglang.request_checks import refusal, samples_refusal

MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
UNTIL = "SGLang checks what the scheduler uses as indices and tensors, and the types that it reads"


@hook(f"{MANAGER}.generate_request", ("self", "obj", "request"), AROUND, until=UNTIL)
def _generate_request(
    original: Callable[..., Any], manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> Any:
    """The number of samples, beam search and sampling parameters of a wrong type are refused
    before anything is computed from them"""
    sampling = obj.sampling_params
    _refuse(unreadable_sampling(sampling) or samples_refusal(sampling))
    return original(manager, obj, *args, **kwargs)


@hook(
    f"{MANAGER}._create_tokenized_object",
    (
        *("self", "obj", "input_text", "input_ids", "input_embeds", "mm_inputs"),
        "token_type_ids",
    ),
    AFTER,
    until=UNTIL,
)
def _check_tokenized(tokenized: Any, manager: Any, *args: Any, **kwargs: Any) -> None:
    """A request with a number that would end the server is refused, with field and range
    (`jenga_sglang/request_checks.py`)"""
    limits = limits_of(tokenized, manager.model_config)
    _refuse(refusal(tokenized, limits) or unreadable(tokenized))


@hook(f"{MANAGER}.open_session", ("self", "obj", "request"), AROUND, until=UNTIL)
def _open_session(
    original: Callable[..., Any], manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> Any:
    """A session of a wrong type is refused before the scheduler reads it"""
    _refuse(unreadable(obj))
    return original(manager, obj, *args, **kwargs)


def _refuse(why: str | None) -> None:
    if why:
        raise ValueError(why)
