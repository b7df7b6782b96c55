"""Experts in plain torch: what SGLang's torch version of them leaves out.

It raises for a router's weight on the input, knows no experts without a gate, and forgets the
factor of the routed experts, which the runner of its Triton kernels applies.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import gelu, linear, relu, silu

from jenga_sglang.platform.late import after_import

Experts = Callable[[Any, torch.Tensor, Any, Any], torch.Tensor]

# Blocks of experts that multiply by the factor themselves wherever the device is not CUDA.
_SCALES_ITSELF = {
    "sglang.srt.models.deepseek_v2": "DeepseekV2MoE",
    "sglang.srt.models.glm4_moe": "Glm4MoeSparseMoeBlock",
    "sglang.srt.models.glm4_moe_lite": "Glm4MoeLiteSparseMoeBlock",
}
_RUNNER = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe"
# Models that call the runner's kernels themselves, past SGLang's layer of experts.
_CALLS_KERNELS = tuple(
    f"sglang.srt.models.{name}" for name in ("afmoe", "dbrx", "deepseek", "xverse_moe")
)
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # The form that Gemma-4 was trained with, and that SGLang's torch experts with a gate take.
    "gelu": functools.partial(gelu, approximate="tanh"),
    "relu2": lambda x: relu(x).square(),
    "silu": silu,
}


def install() -> None:
    after_import("sglang.srt.layers.moe.fused_moe_native", _change_native)
    after_import(_RUNNER, _change_runner)
    # Some are imported before this runs.
    for name in _CALLS_KERNELS:
        after_import(name, _change_caller)
    for name, block in _SCALES_ITSELF.items():
        after_import(name, functools.partial(_change_block, block=block))


def _change_native(module: Any) -> None:
    module.moe_forward_native = complete(module.moe_forward_native)
    module.swiglu_gpt_oss_sigmoid_alpha = swiglu_gpt_oss


def _change_runner(module: Any) -> None:
    _change_caller(module)
    module.swiglu_gpt_oss_sigmoid_alpha = swiglu_gpt_oss


def _change_caller(module: Any) -> None:
    module.fused_moe = fused_moe


def _change_block(module: Any, block: str) -> None:
    kind = getattr(module, block)
    kind.__init__ = scaled_by_itself(kind.__init__)


def scaled_by_itself(init: Callable[..., None]) -> Callable[..., None]:
    """``init`` of a block of experts that multiplies their result: they themselves must not."""

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.experts.moe_runner_config.routed_scaling_factor = None

    return wrapped


def complete(native: Experts) -> Experts:
    """SGLang's torch experts ``native``, and what they lack.

    Called as it is: the layer with its weights, x (tokens, hidden), the router's choice and the
    runner's config; returns (tokens, hidden) in x's dtype.
    """

    @functools.wraps(native)
    def experts(layer: Any, x: torch.Tensor, topk_output: Any, config: Any) -> torch.Tensor:
        if config.apply_router_weight_on_input:
            x, topk_output = weigh_input(x, topk_output)
            config = dataclasses.replace(config, apply_router_weight_on_input=False)
        run = native if config.is_gated else experts_without_gate
        out = run(layer, x, topk_output, config)
        factor = config.routed_scaling_factor
        return out if factor is None else out * factor

    return experts


def weigh_input(x: torch.Tensor, topk_output: Any) -> tuple[torch.Tensor, Any]:
    """x (tokens, hidden) times the weight of each token's one expert, and that choice with weights
    of one. Raises ``NotImplementedError`` for several experts, which would each need an input."""
    weights = topk_output.topk_weights
    if weights.shape[1] != 1:
        raise NotImplementedError("the CPU platform weighs the input of one expert a token only")
    return x * weights.to(x.dtype), topk_output._replace(topk_weights=torch.ones_like(weights))


def experts_without_gate(
    layer: Any, x: torch.Tensor, topk_output: Any, config: Any
) -> torch.Tensor:
    """Two matrices an expert with an activation between them. Layer's w13_weight: (experts, inner,
    hidden), w2_weight: (experts, hidden, inner). Otherwise as `complete`."""
    weights, ids = topk_output.topk_weights, topk_output.topk_ids
    activate = _ACTIVATIONS[config.activation]
    out = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        rows, place = (ids == expert).nonzero(as_tuple=True)
        inner = activate(linear(x[rows], layer.w13_weight[expert]))
        result = linear(inner, layer.w2_weight[expert]) * weights[rows, place, None]
        out.index_add_(0, rows, result.to(x.dtype))
    return out


def fused_moe(
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_output: Any,
    moe_runner_config: Any = None,
    b1: torch.Tensor | None = None,
    b2: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Experts given as their weights: w1 (experts, inner, hidden), w2 (experts, hidden, inner).

    Raises ``NotImplementedError`` for quantized ones.
    """
    if quantized := sorted(name for name, value in kwargs.items() if value not in (None, False)):
        raise NotImplementedError(f"the CPU platform's experts take no {', '.join(quantized)}")
    from sglang.srt.layers.moe import fused_moe_native
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

    layer = SimpleNamespace(
        num_experts=len(w1), w13_weight=w1, w2_weight=w2, w13_weight_bias=b1, w2_weight_bias=b2
    )
    config = moe_runner_config or MoeRunnerConfig()
    return fused_moe_native.moe_forward_native(layer, hidden_states, topk_output, config)


def swiglu_gpt_oss(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """gpt-oss's activation of x (tokens, 2 · inner), gate and up taking turns; (tokens, inner).
    SGLang compiles it, with a C++ compiler, when it is called."""
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(gate * alpha) * (up + 1)
