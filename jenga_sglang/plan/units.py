"""Sizes and lengths as people write them."""

from __future__ import annotations

import re

_BYTES = {
    "": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_TOKENS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def parse_bytes(text: str) -> int:
    """``40GiB`` (binary), ``40GB`` (decimal) or a plain number of bytes."""
    return _parse(text, _BYTES, "a size such as 40GiB")


def parse_tokens(text: str) -> int:
    """``4k`` is 4,096 tokens, ``1m`` 1,048,576."""
    return _parse(text, _TOKENS, "a length such as 4k")


def human_tokens(tokens: int) -> str:
    """The shortest way to write a length that `parse_tokens` reads back."""
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        raise ValueError(f"expected {expected}, got {text!r}")
    value = int(float(match[1]) * units[match[2]])
    if value < 1:
        raise ValueError(f"expected {expected} above 0, got {text!r}")
    return value
