"""Draws that a request's seed decides, in plain torch: SGLang has their hash (MurmurHash3, of 32
bits) as a Triton kernel and in kernels that are built for CPUs, and compiles the draw around it,
for which a CPU needs a C++ compiler."""

from __future__ import annotations

from typing import Any

import torch

from jenga_sglang.platform.late import after_import

LOW = 0xFFFFFFFF
NUM_BYTES = 16


def install() -> None:
    after_import("sglang.srt.layers.sampler", _change)


def _change(module: Any) -> None:
    module.murmur_hash32 = murmur_hash32
    compiled = module.multinomial_with_seed
    module.multinomial_with_seed = getattr(compiled, "_torchdynamo_orig_callable", compiled)


def murmur_hash32(
    seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor
) -> torch.Tensor:
    """Hash of each row's ``seed`` (rows,) of 64 bits and ``positions`` (rows,), and each of
    ``col_indices`` (columns,): (rows, columns) int64, below 2**32."""
    seed = seed.view(torch.int64)[:, None]
    state = torch.zeros_like(seed)
    for block in (seed, seed >> 32, positions.long()[:, None], col_indices.long()[None]):
        state = _mix(state, block & LOW)
    state = state ^ NUM_BYTES
    # Products wrap at 64 bits, which leaves the lower 32 right.
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & LOW
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & LOW
    return state ^ (state >> 16)


def _mix(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    block = _rotate((block * 0xCC9E2D51) & LOW, 15)
    state = _rotate(state ^ ((block * 0x1B873593) & LOW), 13)
    return (state * 5 + 0xE6546B64) & LOW


def _rotate(x: torch.Tensor, bits: int) -> torch.Tensor:
    return ((x << bits) | (x >> (32 - bits))) & LOW
