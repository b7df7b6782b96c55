"""Debugging aids that environment variables switch on; a value without meaning ends the start."""

from __future__ import annotations

import os

from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.flags import refuse

POISON_VARIABLE = "JENGA_POISON_FREED"
LAYOUT_VARIABLE = "JENGA_LAYOUT"
POLICY_VARIABLE = "JENGA_POLICIES"
LAYOUTS = ("planned", "exact-lcm")


def check() -> None:
    """Raise ``SystemExit`` with one line for the first variable whose value means nothing."""
    layout(), cache_policy(), poisons_freed()


def layout() -> str:
    """How the pool is cut, one of `LAYOUTS`."""
    return _one_of(LAYOUT_VARIABLE, LAYOUTS)


def poisons_freed() -> bool:
    """Whether freed pages are filled with NaN."""
    return _one_of(POISON_VARIABLE, ("0", "1")) == "1"


def cache_policy() -> CachePolicy:
    """What the prefix cache keeps."""
    text = os.environ.get(POLICY_VARIABLE, "")
    try:
        return CachePolicy.parse(text)
    except ValueError as error:
        why = f"{error}; write name=number, name=on or name=off, with commas between"
        raise refuse(f"{POLICY_VARIABLE}={text}", why) from error


def _one_of(variable: str, known: tuple[str, ...]) -> str:
    """The variable's value; the first that is known when it is not set or empty."""
    value = os.environ.get(variable) or known[0]
    if value not in known:
        raise refuse(f"{variable}={value}", f"unknown; choose one of {', '.join(known)}")
    return value
