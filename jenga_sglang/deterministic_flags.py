"""Which starts `--enable-deterministic-inference` goes with: answers have the same bits whatever a
request is computed beside, and whether its prefix was cached or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jenga_sglang.refusal import refuse

FLAG = "--enable-deterministic-inference"
BACKENDS = ("jenga_torch", "triton")
# What it would take, by the attention backend that has not got it.
_BACKEND_TAKES: Mapping[str, str] = {
    "flashinfer": "pieces of fixed sizes in our plans, tables of windows that begin at such a "
    "piece, and a device to compare bits on",
    "fa3": "one piece a history, tables of windows that begin at a tile of its kernel, and a "
    "device to compare bits on",
}
_ON_DEVICE_TAKES = "elsewhere: a device to compare its attention and SGLang's operators on"
UNTRIED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "speculative_algorithm": ("--speculative-algorithm", (None,)),
    "enable_dp_attention": ("--enable-dp-attention", (None, False)),
    "enable_hierarchical_cache": ("--enable-hierarchical-cache", (None, False)),
    "disaggregation_mode": ("--disaggregation-mode", (None, "null")),
    "pp_size": ("--pp-size", (None, 1)),
    "enable_lora": ("--enable-lora", (None, False)),
    "lora_paths": ("--lora-paths", (None, [])),
    "quantization": ("--quantization", (None,)),
}
# The sum of two ranks has one order; of more, gloo's depends on how much is summed.
MOST_RANKS = 2


def check(values: Mapping[str, Any], attention_backend: str) -> None:
    """Raise ``SystemExit`` with one line for what does not work. ``values`` are fields of SGLang's
    ``ServerArgs``."""
    if not values.get("enable_deterministic_inference"):
        return
    if takes := backend_takes(attention_backend, on_cpu=_is_on_cpu(values)):
        raise refuse(
            FLAG,
            f"does not work with --memory-backend jenga and --attention-backend "
            f"{attention_backend} yet, which takes {takes.removeprefix('elsewhere: ')}; "
            f"{_instead(on_cpu=_is_on_cpu(values))}",
        )
    for field, (flag, works) in UNTRIED.items():
        value = values.get(field)
        if value not in works:
            shown = flag if value is True else f"{flag} {value}"
            raise refuse(
                f"{shown} with {FLAG}",
                "has not been tried with --memory-backend jenga; leave one of them out",
            )
    ranks = values.get("tp_size") or 1
    if _is_on_cpu(values) and ranks > MOST_RANKS:
        raise refuse(
            f"--tp-size {ranks} with {FLAG}",
            f"on a CPU more than {MOST_RANKS} ranks sum in an order that changes with the batch; "
            f"choose {MOST_RANKS} or fewer",
        )


def preferred(attention_backend: str, values: Mapping[str, Any]) -> str:
    """The backend of a user who named none: one that has the flag, where it was asked for."""
    asked = values.get("enable_deterministic_inference")
    return "triton" if asked and attention_backend not in BACKENDS else attention_backend


def backend_takes(attention_backend: str, *, on_cpu: bool) -> str | None:
    """What it would take to have the flag with this backend; None where it works."""
    if attention_backend == "jenga_torch" and not on_cpu:
        return _ON_DEVICE_TAKES
    return _BACKEND_TAKES.get(attention_backend)


def table() -> list[str]:
    """The rows of `docs/deterministic.md`: backend by backend."""
    rows = [("jenga_torch", "on a CPU", _ON_DEVICE_TAKES), ("triton", "yes", "no more")]
    rows += [(name, "no", takes) for name, takes in _BACKEND_TAKES.items()]
    return [f"| `{name}` | {works} | {takes} |" for name, works, takes in rows]


def _is_on_cpu(values: Mapping[str, Any]) -> bool:
    import torch

    return values.get("device") == "cpu" or not torch.cuda.is_available()


def _instead(*, on_cpu: bool) -> str:
    return f"choose {'jenga_torch' if on_cpu else 'triton'}, or leave it out"
