"""The text that the programs read: this project's own licence and README."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def licence(num_chars: int = 3000) -> str:
    """The beginning of the Apache License, by whole paragraphs."""
    return _beginning(ROOT / "LICENSE", num_chars)


@cache
def readme(num_chars: int = 1500) -> str:
    """The beginning of the README, by whole paragraphs."""
    return _beginning(ROOT / "README.md", num_chars)


def _beginning(path: Path, num_chars: int) -> str:
    text = path.read_text(encoding="utf-8").strip()[:num_chars]
    return text[: text.rindex("\n\n")]
