"""The CPU platform's experts, against a loop over tokens."""

import inspect
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from sglang.srt.layers.moe import fused_moe_native
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from torch.nn.functional import gelu, silu

from jenga_sglang.platform.experts import complete, fused_moe, scaled_by_itself, swiglu_gpt_oss

TOKENS, HIDDEN, INNER, EXPERTS = 7, 6, 5, 4
# SGLang's torch experts take "gelu" for its approximation by a tanh.
ACTIVATIONS = {
    "silu": silu,
    "gelu": partial(gelu, approximate="tanh"),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}

# SGLang's own, also where the platform has replaced it in this process.
experts = complete(inspect.unwrap(fused_moe_native.moe_forward_native))


class Choice(NamedTuple):
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    router_logits: torch.Tensor | None = None


def layer(*, gated: bool = True) -> Any:
    width = INNER * (2 if gated else 1)
    return SimpleNamespace(
        num_experts=EXPERTS,
        w13_weight=torch.randn(EXPERTS, width, HIDDEN),
        w2_weight=torch.randn(EXPERTS, HIDDEN, INNER),
    )


def choice(top_k: int) -> Choice:
    ids = torch.stack([torch.randperm(EXPERTS)[:top_k] for _ in range(TOKENS)])
    return Choice(torch.rand(TOKENS, top_k), ids)


def one_expert(weights: Any, expert: int, x: torch.Tensor, activation: str, gated: bool) -> Any:
    inner = weights.w13_weight[expert] @ x
    activate = ACTIVATIONS[activation]
    inner = activate(inner[:INNER]) * inner[INNER:] if gated else activate(inner)
    return weights.w2_weight[expert] @ inner


@pytest.mark.parametrize(
    ("activation", "gated", "top_k", "on_input", "factor"),
    [
        ("silu", True, 2, False, None),
        ("silu", True, 2, False, 2.5),
        ("gelu", True, 3, False, 0.5),
        ("silu", True, 1, True, None),
        ("relu2", False, 2, False, 2.5),
        ("silu", False, 2, False, None),
        ("gelu", False, 2, False, None),
        ("relu2", False, 1, True, None),
    ],
)
def test_experts_equal_a_loop_over_tokens(
    activation: str,
    gated: bool,
    top_k: int,
    on_input: bool,
    factor: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(fused_moe_native, "moe_forward_native", experts)
    weights, chosen, x = layer(gated=gated), choice(top_k), torch.randn(TOKENS, HIDDEN)
    given = x.clone()
    config = MoeRunnerConfig(
        activation=activation,
        is_gated=gated,
        apply_router_weight_on_input=on_input,
        routed_scaling_factor=factor,
    )
    expected = torch.zeros_like(x)
    for t in range(TOKENS):
        for weight, expert in zip(*(part[t].tolist() for part in chosen[:2]), strict=True):
            scaled = x[t] * weight if on_input else x[t]
            result = one_expert(weights, int(expert), scaled, activation, gated)
            expected[t] += (1 if on_input else weight) * result
    torch.testing.assert_close(experts(weights, x, chosen, config), expected * (factor or 1))
    assert torch.equal(x, given)
    direct = fused_moe(x, weights.w13_weight, weights.w2_weight, chosen, config, use_fp8_w8a8=False)
    torch.testing.assert_close(direct, expected * (factor or 1))


def test_several_experts_weighed_at_the_input_are_refused() -> None:
    config = MoeRunnerConfig(apply_router_weight_on_input=True)
    with pytest.raises(NotImplementedError, match="one expert"):
        experts(layer(), torch.randn(TOKENS, HIDDEN), choice(2), config)


def test_quantized_experts_are_refused() -> None:
    weights = layer()
    with pytest.raises(NotImplementedError, match="use_fp8_w8a8, w1_scale"):
        fused_moe(
            torch.randn(TOKENS, HIDDEN),
            weights.w13_weight,
            weights.w2_weight,
            choice(1),
            use_fp8_w8a8=True,
            w1_scale=torch.ones(1),
        )


def test_a_block_that_scales_its_experts_itself_does_it_once() -> None:
    class Block:
        def __init__(self, factor: float) -> None:
            config = MoeRunnerConfig(routed_scaling_factor=factor)
            self.experts = SimpleNamespace(moe_runner_config=config)

    Block.__init__ = scaled_by_itself(Block.__init__)  # type: ignore[method-assign]
    assert Block(2.5).experts.moe_runner_config.routed_scaling_factor is None


def test_the_activation_of_gpt_oss() -> None:
    gate, up = torch.tensor([9.0, -1.0]), torch.tensor([-9.0, 2.0])
    x = torch.stack((gate, up), -1).reshape(1, 4)
    g, u = torch.tensor([7.0, -1.0]), torch.tensor([-7.0, 2.0])
    expected = g / (1 + torch.exp(-1.702 * g)) * (u + 1)
    torch.testing.assert_close(swiglu_gpt_oss(x, 1.702, 7.0), expected[None])
