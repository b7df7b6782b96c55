"""What the model allows one request, and which values of it the scheduler could not read.

SGLang writes a request as MessagePack whatever its values' types are, and the scheduler ends when
it reads a type that it does not expect.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sglang.srt.managers import io_struct
from sglang.srt.managers.io_struct import PickleWrapper

from jenga_sglang.request_checks import Limits

# Large, and of types that the tokenizer manager makes itself.
HEAVY = ("input_ids", "input_embeds", "mm_inputs", "positional_embed_overrides", "time_stats")
# Sampling parameters that SGLang turns into another type before it writes them.
CONVERTED = ("stop_token_ids", "watermark")
# How configurations name the token that stands for an image, a video or sound.
PLACEHOLDER_ENDINGS = ("_token_id", "_token_index")
TEXT_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


# -- what the model allows ------------------------------------------------------------------------


def limits_of(tokenized: Any, model_config: Any) -> Limits:
    """The limits of one tokenized request. Media and a session's history are put into the prompt
    by the scheduler only, so its length is not known here."""
    media = tokenized.mm_inputs
    longer = media is not None or getattr(tokenized, "session_params", None) is not None
    rows = getattr(tokenized, "input_embeds", None)
    tokens = tokenized.input_ids if rows is None else rows
    return Limits(
        vocab_size=model_config.vocab_size,
        hidden_size=model_config.hidden_size,
        num_tokens=None if longer or tokens is None else len(tokens),
        free_positions=[] if media is None else _media_spans(media),
        placeholders=frozenset() if media is None else _placeholders(media, model_config),
    )


def _media_spans(media: Any) -> list[tuple[int, int]]:
    return [span for item in media.mm_items for span in getattr(item, "offsets", None) or ()]


def _placeholders(media: Any, model_config: Any) -> frozenset[int]:
    """Token ids that the processor and the model's configuration name for media."""
    named = [getattr(media, name) for name in media.__struct_fields__ if name.endswith("_id")]
    config = vars(model_config.hf_config)
    names = [name for name in config if name.endswith(PLACEHOLDER_ENDINGS)]
    named += [config[name] for name in names if name not in TEXT_TOKENS]
    return frozenset(token for token in named if isinstance(token, int))


# -- types ----------------------------------------------------------------------------------------


def unreadable(message: msgspec.Struct) -> str | None:
    """Which field of ``message`` the scheduler could not read, and why, in one line; or None."""
    light = msgspec.structs.replace(
        message, **{name: None for name in HEAVY if hasattr(message, name)}
    )
    try:
        io_struct.msgpack_decode(io_struct.msgpack_encode(light))
    except (msgspec.MsgspecError, TypeError, OverflowError) as error:
        return _unreadable_field(light, "") or f"the request cannot be read: {error}"
    return None


def _unreadable_field(values: msgspec.Struct, prefix: str) -> str | None:
    for field in msgspec.structs.fields(values):
        value = getattr(values, field.name)
        if isinstance(value, msgspec.Struct) and not isinstance(value, PickleWrapper):
            why = _unreadable_field(value, f"{prefix}{field.name}.")
        elif field.name in HEAVY:
            why = None
        else:
            why = _unreadable_value(prefix + field.name, value, field.type)
        if why:
            return why
    return None


def unreadable_sampling(sampling: Any) -> str | None:
    """The same for the caller's sampling parameters, a mapping, a list of them or None: SGLang
    computes with them before it writes them."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(io_struct.SamplingParams)}
    given = sampling if isinstance(sampling, list) else [sampling]
    whys = (
        _unreadable_value(f"sampling_params.{name}", value, kinds[name])
        for parameters in given
        if isinstance(parameters, dict)
        for name, value in parameters.items()
        # None is the default of each.
        if name in kinds and name not in CONVERTED and value is not None
    )
    return next(filter(None, whys), None)


def _unreadable_value(name: str, value: Any, kind: Any) -> str | None:
    try:
        written = msgspec.msgpack.encode(value, enc_hook=io_struct.enc_hook)
        msgspec.msgpack.decode(written, type=kind, dec_hook=io_struct.dec_hook)
    except (msgspec.MsgspecError, TypeError, OverflowError) as error:
        return f"{name} is {value!r}: {error}"
    return None
