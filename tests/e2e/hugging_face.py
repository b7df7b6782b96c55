"""Answers of Hugging Face's models, the same weights in float32."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@cache
def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


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
