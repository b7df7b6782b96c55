"""Sizes, lengths and times as people write them on a command line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TypeVar

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

_T = TypeVar("_T")


def parse_bytes(text: str) -> int:
    """``40GiB`` (binary), ``40GB`` (decimal) or a plain number of bytes."""
    return int(_parse(text, _BYTES, "a size such as 40GiB"))


def parse_tokens(text: str) -> int:
    """``4k`` is 4,096 tokens, ``1m`` 1,048,576."""
    return int(_parse(text, _TOKENS, "a length such as 4k"))


def parse_ranks(text: str) -> int:
    """``8`` ranks."""
    return int(_parse(text, {"": 1}, "a number of ranks such as 8"))


def parse_seconds(text: str) -> float:
    """``0.5`` or ``0.5s``."""
    return _parse(text, {"": 1, "s": 1}, "seconds such as 0.5", least=1e-3)


def human_tokens(tokens: int) -> str:
    """The shortest way to write a length that `parse_tokens` reads back."""
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """``parse`` for argparse, which shows the message of its own kind of error only."""

    def convert(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _parse(text: str, units: dict[str, int], expected: str, least: float = 1) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in units:
        raise ValueError(f"expected {expected}, got {text!r}")
    value = float(match[1]) * units[match[2]]
    if not least <= value < math.inf:
        raise ValueError(f"expected {expected} above 0, got {text!r}")
    return value
