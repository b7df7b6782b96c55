"""Answers of Hugging Face's models, the same weights in float32."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from models.tiny_step import HUGGING_FACE


@cache
def load(path: Path, more: int = 0) -> Any:
    """The model of the class that wrote the checkpoint: an `Auto` class may take another part.

    Its windows are longer by ``more`` tokens. Logits of attention are capped by the eager
    implementation only. A checkpoint whose release Hugging Face reads otherwise has one for it
    inside.
    """
    path = path / HUGGING_FACE if (path / HUGGING_FACE).exists() else path
    config = transformers.AutoConfig.from_pretrained(path)
    (name,) = config.architectures
    text = config.get_text_config()
    if more:
        text.sliding_window += more
    capped = getattr(text, "attn_logit_softcapping", None)
    how = {"attn_implementation": "eager"} if capped else {}
    model = getattr(transformers, name).from_pretrained
    return model(path, config=config, dtype=torch.float32, **how).eval()


def greedy_tokens(path: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """The likeliest continuation of ``num_tokens`` tokens, whatever ends it."""
    inputs = torch.tensor([prompt])
    with torch.inference_mode():
        out = load(path).generate(
            inputs,
            # Or what looks like padding would be passed over.
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def token_logprobs(
    path: Path, prompt: list[int], tokens: list[int], more: int = 0
) -> tuple[list[int], list[float]]:
    """What the model thinks behind ``prompt`` and each of ``tokens`` but the last: its likeliest
    token there, and the logprob of the one that was given. One pass, without a cache. ``more`` as
    for `load`."""
    inputs = torch.tensor([prompt + tokens[:-1]])
    with torch.inference_mode():
        logits = load(path, more)(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
    logprobs = logits[0, len(prompt) - 1 :].float().log_softmax(-1)
    likeliest: list[int] = logprobs.argmax(-1).tolist()
    given: list[float] = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    return likeliest, given
