"""SGLang's Triton kernels of gated delta nets take a Jenga pool's states as they are, and agree
with the torch operators of the CPU platform."""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
import triton.language as tl
from sglang.kernels.ops.attention import triton_gdn_fused_proj as projections
from sglang.kernels.ops.attention.fla import fused_norm_gate, fused_recurrent, layernorm_gated

try:
    from sglang.kernels.ops.attention.linear import fused_gdn_gating as gating
except ImportError:  # SGLang 0.5.22
    from sglang.kernels.ops.attention.fla import fused_gdn_gating as gating
from sglang.kernels.ops.elementwise import elementwise

from flashinfer_ext.states import StateLayout, StatePart, state_view
from jenga_sglang.platform import delta_rule, gates

KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM = 2, 4, 16, 8
CHANNELS = 2 * KEY_HEADS * KEY_DIM + HEADS * VALUE_DIM
SCALE = KEY_DIM**-0.5
LENGTHS = (5, 1, 9)
SLOTS = torch.tensor([4, 2, 6], dtype=torch.int32)
# How wide the gate's input is: one number a head, or one per key dimension.
GATES = {"gated delta net": HEADS, "KDA": HEADS * KEY_DIM}


@pytest.fixture(autouse=True)
def kernels_run_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some choose their tensors' device first, which torch cannot do for a CPU; some hold a
    function of the language by a name where the interpreter does not look for it."""
    monkeypatch.setattr(torch.cpu, "device", lambda index: nullcontext(), raising=False)
    monkeypatch.setattr(fused_recurrent, "exp", lambda x: tl.exp(x))


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_states() -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of a pool of small pages, and the states of its second layer."""
    parts = (
        StatePart((CHANNELS, 3), torch.float32),
        StatePart((HEADS, VALUE_DIM, KEY_DIM), torch.float32),
    )
    small = 2 * sum(part.padded_bytes for part in parts) + 64
    buffer = random(7 * small // 4, seed=0).view(torch.uint8).clone()
    states = state_view(buffer, StateLayout(2, parts, small), 1, 1)
    assert not states.is_contiguous()
    return buffer, states


def decode(function: Any, states: torch.Tensor, width: int, place: Any) -> torch.Tensor:
    """One more token for the sequences at ``place`` of three."""
    out = torch.full((3, 1, HEADS, VALUE_DIM), 7.0)[place].contiguous()
    function(
        random(sum(LENGTHS), CHANNELS)[place],
        random(sum(LENGTHS), width, seed=2)[place],
        random(sum(LENGTHS), HEADS, seed=3)[place],
        random(HEADS, seed=4),
        random(width, seed=5),
        SCALE,
        states,
        out,
        SLOTS[place],
        use_qk_l2norm_in_kernel=True,
    )
    return out


@pytest.mark.parametrize("kind", GATES)
def test_one_more_token(kind: str) -> None:
    theirs, ours = (
        (
            fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode,
            delta_rule.gated_delta_decode,
        )
        if kind == "gated delta net"
        else (fused_recurrent.fused_recurrent_kda_packed_decode, delta_rule.kda_decode)
    )
    buffers, outs = [], []
    for function in (theirs, ours):
        buffer, states = make_states()
        outs.append(decode(function, states, GATES[kind], slice(None, 3)))
        buffers.append(buffer.view(torch.float32))
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*buffers, rtol=1e-4, atol=1e-5)
    assert (buffers[0] != make_states()[0].view(torch.float32)).any(), "nothing was written"


@pytest.mark.parametrize("kind", GATES)
def test_a_prefill_is_as_many_single_tokens(kind: str) -> None:
    """(SGLang's own kernels for prefills take no float32.)"""
    width, total = GATES[kind], sum(LENGTHS)
    mixed, a, b = (
        random(total, CHANNELS),
        random(total, width, seed=2),
        random(total, HEADS, seed=3),
    )
    rate, bias = random(HEADS, seed=4), random(width, seed=5)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    wide = KEY_HEADS * KEY_DIM
    q, k, v = mixed[None].split([wide, wide, HEADS * VALUE_DIM], -1)
    q, k = (x.unflatten(-1, (KEY_HEADS, KEY_DIM)) for x in (q, k))
    v = v.unflatten(-1, (HEADS, VALUE_DIM))

    whole, states = make_states()
    if kind == "KDA":
        one = delta_rule.kda_decode
        out = delta_rule.chunk_kda(
            *(q, k, v, a.unflatten(-1, (HEADS, KEY_DIM))[None], b[None], states, SLOTS, bounds),
            A_log=rate,
            dt_bias=bias,
            beta_is_raw=True,
        )
    else:
        one = delta_rule.gated_delta_decode
        g, beta = delta_rule.gdn_gates(rate, a, b, bias)
        out, *_ = delta_rule.chunk_gated_delta_rule(q, k, v, g, beta, states, SLOTS, bounds)

    single, states = make_states()
    step = torch.zeros(total, 1, HEADS, VALUE_DIM)
    for number, (start, stop) in enumerate(pairwise(bounds.tolist())):
        for t in range(start, stop):
            one(
                *(mixed[t : t + 1], a[t : t + 1], b[t : t + 1], rate, bias, SCALE, states),
                *(step[t : t + 1], SLOTS[number : number + 1]),
            )
    torch.testing.assert_close(out[0], step[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        whole.view(torch.float32), single.view(torch.float32), rtol=1e-4, atol=1e-5
    )
    assert (whole != make_states()[0]).any(), "nothing was written"


def assert_alike(theirs: Any, ours: Any, *args: Any, **kwargs: Any) -> None:
    torch.testing.assert_close(ours(*args, **kwargs), theirs(*args, **kwargs), rtol=1e-4, atol=1e-5)


def test_gates_of_a_prefill() -> None:
    assert_alike(
        gating.fused_gdn_gating,
        delta_rule.gdn_gates,
        *(random(HEADS), random(6, HEADS, seed=2), random(6, HEADS, seed=3), random(HEADS, seed=4)),
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (projections.fused_qkvzba_split_reshape_cat, delta_rule.split_by_head),
        (projections.fused_qkvzba_split_reshape_cat_contiguous, delta_rule.split_by_kind),
    ],
)
def test_splitting_of_projections(theirs: Any, ours: Any) -> None:
    width = CHANNELS + HEADS * VALUE_DIM
    assert_alike(
        theirs,
        ours,
        *(random(5, width), random(5, 2 * HEADS, seed=2), KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM),
    )


@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
def test_norm_with_a_gate(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm_gate, "is_arch_support_pdl", lambda: False)
    x, z, weight = random(6, 32), random(6, 32, seed=2), random(32, seed=3)
    assert_alike(fused_norm_gate.rms_norm_gated, gates.fused_norm, x, z, weight, None, activation)
    monkeypatch.setattr(layernorm_gated, "calc_rows_per_block", lambda rows, device: 4)
    monkeypatch.setattr(layernorm_gated, "is_arch_support_pdl", lambda: False)
    for before in (True, False):
        assert_alike(
            layernorm_gated.rms_norm_gated,
            gates.grouped_norm,
            x=x,
            weight=weight,
            bias=None,
            z=z,
            norm_before_gate=before,
            group_size=16,
            is_rms_norm=True,
            activation=activation,
        )


def test_gate_of_attention() -> None:
    x, gate = random(5, 24), random(5, 3, 8, seed=2)
    assert_alike(elementwise.fused_sigmoid_mul, gates.sigmoid_mul, x, gate)
