"""What differs between the versions of FlashInfer that this package calls.

| version | FA2's planner ends with                                                             |
|---------|-------------------------------------------------------------------------------------|
| 0.7.2   | no fixed split, splitting allowed, nothing co-located, no uniform number of queries |
| 0.7.4   | the same, but a decode says that it has one query per request, in every plan        |
"""

from __future__ import annotations

from functools import cache

KNOWN = ("0.7.2", "0.7.4")
NO_FIXED_SPLIT, SPLITTING_ALLOWED, NOTHING_COLOCATED = -1, False, 0


@cache
def installed() -> str:
    """FlashInfer's version, one of `KNOWN`; raises RuntimeError for any other."""
    import flashinfer

    found = str(flashinfer.__version__)
    for known in KNOWN:
        if found == known or found.startswith((f"{known}.post", f"{known}+")):
            return known
    raise RuntimeError(f"flashinfer: expected {' or '.join(KNOWN)}, got {found}")


def fa2_planner_tail(version: str, is_decode: bool) -> list[int | bool]:
    """Last arguments of the planner of FA2's modules."""
    tail: list[int | bool] = [NO_FIXED_SPLIT, SPLITTING_ALLOWED, NOTHING_COLOCATED]
    if version == "0.7.2":
        return [*tail, 0]
    return [*tail, 1, True] if is_decode else [*tail, 0, False]
