"""How a start is refused."""

from __future__ import annotations


def refuse(what: str, why: str) -> SystemExit:
    """The one line a user sees when a start is refused: ``what`` was given, ``why`` it cannot be
    and what to do instead."""
    return SystemExit(f"jenga-sglang: {what}: {why}.")
