"""Numbers of a request that must not reach the scheduler: used as indices there, or as tensors of
a fixed width, one of them ends the server for everybody.

`CHECKS` and `SAMPLING_CHECKS` are the whole list, by the field of SGLang's tokenized request. What
SGLang's tokenizer manager refuses by itself (`token_ids_logprob`, keys of `logit_bias`, ranges of
most sampling parameters) is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INT32_MAX = 2**31 - 1
# Every sample is a request of its own, with a copy of the prompt, before any of them runs.
MAX_SAMPLES = 4096
# Beyond these, float32 logits become infinite and sampling ends in NaN.
MAX_LOGIT_BIAS = 1e30
MIN_REPETITION_PENALTY = 1e-6

# What SGLang's other endpoints call the same field.
OTHER_NAMES = {
    "input_ids": "a token of prompt, input, query or items",
    "top_logprobs_num": "logprobs, top_logprobs",
}


@dataclass(frozen=True)
class Limits:
    """What the model allows one request.

    ``num_tokens`` is the length of its prompt where that is known before it is scheduled, else
    None. ``free_positions`` are spans (first, last) of tokens that stand for media, which the
    scheduler replaces; ``placeholders`` are token ids that do.
    """

    vocab_size: int
    hidden_size: int
    num_tokens: int | None = None
    free_positions: Sequence[tuple[int, int]] = ()
    placeholders: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Wrong:
    """A value that is refused, where in the field it is, and what would be legal."""

    value: Any
    legal: str
    where: str = ""


Check = Callable[[Any, Limits], Wrong | None]


def refusal(values: Any, limits: Limits) -> str | None:
    """Why a request is refused, in one line that names field, value and legal range, or None.

    ``values`` has the fields of `CHECKS` and ``sampling_params`` as attributes, as far as its kind
    of request has them.
    """
    sampling = getattr(values, "sampling_params", None)
    checks = dict(SAMPLING_CHECKS)
    if not getattr(sampling, "min_new_tokens", 0):
        # Only until then are they indices of logits; others are compared with what comes out.
        del checks["stop_token_ids"]
    return _first_wrong(values, CHECKS, limits, "") or _first_wrong(
        sampling, checks, limits, "sampling_params."
    )


def samples_refusal(sampling: Any) -> str | None:
    """The same for what is needed before a request is copied for its samples: ``sampling`` is the
    caller's sampling parameters, a mapping, a list of them or None."""
    for given in sampling if isinstance(sampling, list) else [sampling]:
        if not isinstance(given, Mapping):
            continue
        for name, check in SAMPLE_CHECKS.items():
            if given.get(name) is not None and (wrong := check(given[name])):
                return _told(f"sampling_params.{name}", wrong)
    return None


def _first_wrong(
    values: Any, checks: Mapping[str, Check], limits: Limits, prefix: str
) -> str | None:
    for name, check in checks.items():
        value = getattr(values, name, None)
        if value is not None and (wrong := check(value, limits)):
            return _told(prefix + name, wrong)
    return None


def _told(name: str, wrong: Wrong) -> str:
    also = f" ({OTHER_NAMES[name]})" if name in OTHER_NAMES else ""
    return f"{name}{also} is {wrong.value!r}{wrong.where}; legal: {wrong.legal}."


# -- checks ---------------------------------------------------------------------------------------


def _token_ids(ids: Any, limits: Limits) -> Wrong | None:
    """``ids``: an array of int64, or any sequence of integers."""
    tokens = np.asarray(ids, np.int64)
    for position in np.flatnonzero((tokens < 0) | (tokens >= limits.vocab_size)).tolist():
        if not _stands_for_media(int(tokens[position]), position, limits):
            legal = f"0 to {limits.vocab_size - 1}, the model's vocabulary"
            return Wrong(int(tokens[position]), legal, f" at position {position}")
    return None


def _stands_for_media(token: int, position: int, limits: Limits) -> bool:
    inside = any(first <= position <= last for first, last in limits.free_positions)
    return inside or token in limits.placeholders


def _integer(low: int, high: int, legal: str | None = None) -> Check:
    def check(value: Any, limits: Limits) -> Wrong | None:
        return _outside(value, low, high, legal)

    return check


def _outside(value: Any, low: int, high: int, legal: str | None = None) -> Wrong | None:
    if _is_integer(value) and low <= value <= high:
        return None
    return Wrong(value, legal or f"an integer from {low} to {high}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _logprob_start(value: Any, limits: Limits) -> Wrong | None:
    last, known = INT32_MAX, ""
    if limits.num_tokens is not None:
        last, known = limits.num_tokens, f"{limits.num_tokens}, "
    legal = f"-1 for none of the prompt, or an integer from 0 to {known}the number of input tokens"
    return _outside(value, -1, last, legal)


def _top_logprobs(value: Any, limits: Limits) -> Wrong | None:
    legal = f"an integer from 0 to {limits.vocab_size}, the model's vocabulary"
    return _outside(value, 0, limits.vocab_size, legal)


def _positions(value: Any, limits: Limits) -> Wrong | None:
    """Positions in the prompt, of which each is read once."""
    last = INT32_MAX if limits.num_tokens is None else limits.num_tokens - 1
    return _each(value, 0, last, f"positions in the prompt, from 0 to {last}")


def _stop_tokens(value: Any, limits: Limits) -> Wrong | None:
    last = limits.vocab_size - 1
    return _each(value, 0, last, f"from 0 to {last}, the model's vocabulary")


def _each(values: Iterable[Any], low: int, high: int, legal: str) -> Wrong | None:
    wrong = (value for value in values if _outside(value, low, high))
    return next((Wrong(value, legal) for value in wrong), None)


def _rows(value: Any, limits: Limits) -> Wrong | None:
    """Embeddings instead of tokens: (tokens, hidden size), as lists of numbers."""
    for position, row in enumerate(value):
        if len(row) != limits.hidden_size:
            shape = f"a row of {len(row)} numbers"
            return Wrong(shape, f"rows of {limits.hidden_size} numbers", f" at position {position}")
    return None


def _overrides(value: Any, limits: Limits) -> Wrong | None:
    """Embeddings at some positions: (positions, hidden size)."""
    shape = tuple(value.embeds.shape)
    if len(shape) != 2 or shape[1] != limits.hidden_size:
        return Wrong(shape, f"rows of {limits.hidden_size} numbers")
    return _positions(value.positions, limits)


def _bias(value: Mapping[str, float], limits: Limits) -> Wrong | None:
    for token, bias in value.items():
        if not math.isfinite(bias) or abs(bias) > MAX_LOGIT_BIAS:
            legal = f"a number from {-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
            return Wrong(bias, legal, f" for token {token}")
    return None


def _repetition_penalty(value: Any, limits: Limits) -> Wrong | None:
    if value >= MIN_REPETITION_PENALTY:
        return None
    return Wrong(value, f"a number from {MIN_REPETITION_PENALTY:g} to 2")


def _samples(value: Any) -> Wrong | None:
    return _outside(value, 1, MAX_SAMPLES)


def _no_beams(value: Any) -> Wrong | None:
    if value == 1:
        return None
    return Wrong(
        value,
        "1 or nothing, for beam search does not work with --memory-backend jenga; leave it out, or "
        "start the server without that flag",
    )


CHECKS: dict[str, Check] = {
    "input_ids": _token_ids,
    "input_embeds": _rows,
    "positional_embed_overrides": _overrides,
    "logprob_start_len": _logprob_start,
    "top_logprobs_num": _top_logprobs,
    "token_indices_to_pool": _positions,
    "multi_item_delimiter_indices": _positions,
    "routed_experts_start_len": _integer(0, INT32_MAX),
}
SAMPLING_CHECKS: dict[str, Check] = {
    "top_k": _integer(1, INT32_MAX, f"-1 for all, or an integer from 1 to {INT32_MAX}"),
    "min_new_tokens": _integer(0, INT32_MAX),
    "stop_token_ids": _stop_tokens,
    "logit_bias": _bias,
    "repetition_penalty": _repetition_penalty,
}
SAMPLE_CHECKS: dict[str, Callable[[Any], Wrong | None]] = {"n": _samples, "beam_width": _no_beams}
