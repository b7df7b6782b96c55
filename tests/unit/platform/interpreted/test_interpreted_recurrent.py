"""SGLang's Triton kernels of recurrent layers take a Jenga pool's states as they are, and agree
with the torch operators of the CPU platform."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sglang.kernels.ops.mamba import causal_conv1d_triton
from sglang.kernels.ops.mamba.triton_ops import mamba_ssm

from flashinfer_ext.states import StateLayout, StatePart, state_view
from jenga_sglang.platform import operators

CHANNELS, WIDTH = 24, 4
HEADS, DIM, STATE, GROUPS = 4, 8, 16, 2
LENGTHS = (5, 1, 19)
SLOTS = torch.tensor([4, 2, 7], dtype=torch.int32)
RESUMES = torch.tensor([True, False, True])


@pytest.fixture(autouse=True)
def cpu_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Mamba kernels choose their tensors' device first, which torch cannot do for a CPU."""
    monkeypatch.setattr(torch.cpu, "device", lambda index: nullcontext(), raising=False)


@dataclass
class Pool:
    """Nine small pages of two layers; the tests use the second. Everything starts at random."""

    buffer: torch.Tensor
    conv: torch.Tensor
    temporal: torch.Tensor


def make_pool() -> Pool:
    parts = (
        StatePart((CHANNELS, WIDTH - 1), torch.float32),
        StatePart((HEADS, DIM, STATE), torch.float32),
    )
    small = 2 * sum(part.padded_bytes for part in parts) + 64
    layout = StateLayout(2, parts, small)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9 * small // 4, generator=generator)
    buffer = values.view(torch.uint8).clone()
    conv, temporal = (state_view(buffer, layout, 1, part) for part in (0, 1))
    assert not conv.is_contiguous() and not temporal.is_contiguous()
    return Pool(buffer, conv, temporal)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_alike(run: Callable[[Pool, Any], Any], theirs: Any, ours: Any) -> None:
    """Same result, and the same bytes afterwards in the whole pool, up to rounding."""
    pools = make_pool(), make_pool()
    results = [run(pool, function) for pool, function in zip(pools, (theirs, ours), strict=True)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    floats = [pool.buffer.view(torch.float32) for pool in pools]
    torch.testing.assert_close(*floats, rtol=1e-4, atol=1e-5)
    assert (floats[0] != make_pool().buffer.view(torch.float32)).any(), "nothing was written"


def starts() -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)


def test_convolution_of_a_prefill() -> None:
    def run(pool: Pool, function: Any) -> torch.Tensor:
        out: torch.Tensor = function(
            random(CHANNELS, sum(LENGTHS)),
            random(CHANNELS, WIDTH, seed=2),
            random(CHANNELS, seed=3),
            conv_states=pool.conv,
            query_start_loc=starts(),
            seq_lens_cpu=list(LENGTHS),
            cache_indices=SLOTS,
            has_initial_state=RESUMES,
            activation="silu",
        )
        return out

    assert_alike(run, causal_conv1d_triton.causal_conv1d_fn, operators.causal_conv1d_fn)


def test_convolution_of_one_more_token() -> None:
    def run(pool: Pool, function: Any) -> torch.Tensor:
        out: torch.Tensor = function(
            random(3, CHANNELS),
            pool.conv,
            random(CHANNELS, WIDTH, seed=2),
            None,
            None,
            conv_state_indices=SLOTS,
        )
        return out

    assert_alike(run, causal_conv1d_triton.causal_conv1d_update, operators.causal_conv1d_update)


def test_mamba_scan_of_a_prefill() -> None:
    """A prefill equals SGLang's kernel for one more token, token after token. (Its kernel for
    prefills tunes itself on a GPU first.)"""
    total = sum(LENGTHS)
    x, dt = random(1, total, HEADS, DIM), random(1, total, HEADS, seed=2)
    b, c = (random(1, total, GROUPS, STATE, seed=seed) for seed in (4, 5))
    decay, skip, bias = -random(HEADS, seed=3).exp(), random(HEADS, seed=6), random(HEADS, seed=7)

    def scan(pool: Pool) -> torch.Tensor:
        out = torch.zeros(1, total, HEADS, DIM)
        before = torch.where(RESUMES[:, None, None, None], pool.temporal[SLOTS.long()], 0)
        _, states, _ = operators.mamba_chunk_scan_combined(
            *(x, dt, decay, b, c),
            chunk_size=32,
            D=skip,
            dt_bias=bias,
            initial_states=before,
            cu_seqlens=starts(),
            dt_softplus=True,
            out=out,
        )
        pool.temporal[SLOTS.long()] = states
        return out[0]

    def step_by_step(pool: Pool) -> torch.Tensor:
        out = torch.zeros(total, HEADS, DIM)
        pool.temporal[SLOTS[~RESUMES].long()] = 0
        for number, slot in enumerate(SLOTS):
            for t in range(starts()[number], starts()[number + 1]):
                mamba_ssm.selective_state_update(
                    pool.temporal,
                    x[:, t],
                    dt[:, t, :, None].expand(-1, -1, DIM),
                    decay[:, None, None].expand(-1, DIM, STATE),
                    b[:, t],
                    c[:, t],
                    skip[:, None].expand(-1, DIM),
                    dt_bias=bias[:, None].expand(-1, DIM),
                    dt_softplus=True,
                    state_batch_indices=slot[None],
                    out=out[t : t + 1],
                )
        return out

    assert_alike(lambda pool, run: run(pool), step_by_step, scan)


def test_mamba_of_one_more_token() -> None:
    def run(pool: Pool, function: Any) -> torch.Tensor:
        out = torch.zeros(3, HEADS, DIM)
        function(
            pool.temporal,
            random(3, HEADS, DIM),
            random(3, HEADS, seed=2)[..., None].expand(-1, -1, DIM),
            -random(HEADS, seed=3).exp()[:, None, None].expand(-1, DIM, STATE),
            random(3, GROUPS, STATE, seed=4),
            random(3, GROUPS, STATE, seed=5),
            random(HEADS, seed=6)[:, None].expand(-1, DIM),
            dt_bias=random(HEADS, seed=7)[:, None].expand(-1, DIM),
            dt_softplus=True,
            state_batch_indices=SLOTS,
            out=out,
        )
        return out

    assert_alike(run, mamba_ssm.selective_state_update, operators.selective_state_update)
