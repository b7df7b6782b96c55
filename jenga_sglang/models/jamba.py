"""Jamba: layers of Mamba-1, one in eight of attention without positions, every other one with
experts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.attention.mamba.mamba1 import MambaMixer1
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_context import get_attn_backend
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix
from torch import nn

from jenga_sglang.models import jamba_config

jamba_config.register()

# Checkpoint's part of a name → (ours, shard).
_SHARDS = {
    ".q_proj.": (".qkv_proj.", "q"),
    ".k_proj.": (".qkv_proj.", "k"),
    ".v_proj.": (".qkv_proj.", "v"),
}
_DENSE_SHARDS = {
    ".feed_forward.gate_proj.": (".feed_forward.gate_up_proj.", 0),
    ".feed_forward.up_proj.": (".feed_forward.gate_up_proj.", 1),
}


class JambaMamba(MambaMixer1):
    """Mamba-1 whose time steps, B and C are normed with weights."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__(
            hidden_size=config.hidden_size,
            intermediate_size=config.inner_size,
            state_size=config.mamba_d_state,
            conv_kernel=config.mamba_d_conv,
            time_step_rank=config.mamba_dt_rank,
            use_conv_bias=config.mamba_conv_bias,
            use_bias=config.mamba_proj_bias,
            activation=config.hidden_act,
            quant_config=quant_config,
            prefix=prefix,
        )
        self.dt_layernorm = RMSNorm(config.mamba_dt_rank, eps=config.rms_norm_eps)
        self.b_layernorm = RMSNorm(config.mamba_d_state, eps=config.rms_norm_eps)
        self.c_layernorm = RMSNorm(config.mamba_d_state, eps=config.rms_norm_eps)

    def _ssm_params(
        self, conv_out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """conv_out (tokens, channels of this rank) → time steps (tokens, channels), B and C
        (tokens, state)."""
        parts, _ = self.x_proj(conv_out)
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        step, b, c = (part.contiguous() for part in parts.split(sizes, -1))
        dt, _ = self.dt_proj(self.dt_layernorm(step))
        return dt, self.b_layernorm(b), self.c_layernorm(c)


class JambaAttention(nn.Module):
    """Grouped-query attention; positions are what the Mamba layers know."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        head_dim = config.hidden_size // config.num_attention_heads
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * head_dim,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        ranks = get_parallel().tp_size
        heads = config.num_attention_heads // ranks
        kv_heads = max(1, config.num_key_value_heads // ranks)
        self.sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.attn = RadixAttention(
            heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=kv_heads,
            layer_id=layer_id,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )

    def forward(self, hidden: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden)
        out, _ = self.o_proj(self.attn(*qkv.split(self.sizes, -1), forward_batch))
        return out


class JambaDense(nn.Module):
    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("gate_up_proj", prefix),
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("down_proj", prefix),
        )
        self.activate = SiluAndMul()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        both, _ = self.gate_up_proj(hidden)
        out, _ = self.down_proj(self.activate(both))
        return out


class JambaExperts(nn.Module):
    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.router = ReplicatedLinear(
            config.hidden_size, config.num_experts, bias=False, prefix=add_prefix("router", prefix)
        )
        self.topk = TopK(top_k=config.num_experts_per_tok, layer_id=layer_id, renormalize=False)
        self.experts = FusedMoE(
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            layer_id=layer_id,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            quant_config=quant_config,
            reduce_results=True,
            prefix=add_prefix("experts", prefix),
        )
        self.topk.bind_runner_backend(self.experts.runner_backend)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits, _ = self.router(hidden)
        out: torch.Tensor = self.experts(hidden, self.topk(hidden, logits))
        return out


class JambaLayer(nn.Module):
    """What mixes tokens, then what is done to each, both behind a norm."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.is_mamba = config.layers_block_type[layer_id] == "mamba"
        if self.is_mamba:
            self.mamba = JambaMamba(config, quant_config, add_prefix("mamba", prefix))
        else:
            prefix_of_attention = add_prefix("self_attn", prefix)
            self.self_attn = JambaAttention(config, layer_id, quant_config, prefix_of_attention)
        prefix = add_prefix("feed_forward", prefix)
        self.feed_forward: nn.Module
        if config.layers_num_experts[layer_id] > 1:
            self.feed_forward = JambaExperts(config, layer_id, quant_config, prefix)
        else:
            self.feed_forward = JambaDense(config, quant_config, prefix)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_ff_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        """(tokens, hidden) → (tokens, hidden)."""
        hidden = hidden + self.mix(self.input_layernorm(hidden), forward_batch)
        return hidden + self.feed_forward(self.pre_ff_layernorm(hidden))

    def mix(self, normed: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        if not self.is_mamba:
            out: torch.Tensor = self.self_attn(normed, forward_batch)
            return out
        out = torch.empty_like(normed)
        get_attn_backend().linear_attn_backend.forward(
            mixer=self.mamba,
            layer_id=self.layer_id,
            hidden_states=normed,
            output=out,
            forward_batch=forward_batch,
            use_triton_causal_conv=True,
        )
        return out


class JambaModel(nn.Module):
    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            JambaLayer(config, layer, quant_config, add_prefix(f"layers.{layer}", prefix))
            for layer in range(config.num_hidden_layers)
        )
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, input_ids: torch.Tensor, forward_batch: Any, input_embeds: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
        for layer in self.layers:
            hidden = layer(hidden, forward_batch)
        normed: torch.Tensor = self.final_layernorm(hidden)
        return normed


class JambaForCausalLM(nn.Module):
    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.model = JambaModel(config, quant_config, add_prefix("model", prefix))
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, prefix=add_prefix("lm_head", prefix)
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,
        input_embeds: torch.Tensor | None = None,
    ) -> Any:
        hidden = self.model(input_ids, forward_batch, input_embeds)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raises ``KeyError`` for a weight that is none of this model's."""
        parameters = dict(self.named_parameters())
        experts = FusedMoE.make_expert_params_mapping(
            ckpt_gate_proj_name="gate_proj",
            ckpt_down_proj_name="down_proj",
            ckpt_up_proj_name="up_proj",
            num_experts=self.config.num_experts,
        )
        for name, weight in weights:
            load_weight(parameters, experts, name, weight)


def load_weight(
    parameters: dict[str, nn.Parameter],
    experts: list[tuple[str, str, int, str]],
    name: str,
    weight: torch.Tensor,
) -> None:
    """Put one weight of a checkpoint where it belongs; ``experts`` as `FusedMoE` maps them."""
    for part, whole, expert, shard in ((w, p, e, s) for p, w, e, s in experts):
        if part in name:
            name = name.replace(part, whole)
            parameter: Any = parameters[name]
            parameter.weight_loader(parameter, weight, name, shard_id=shard, expert_id=expert)
            return
    for part, (whole, shard_id) in (_SHARDS | _DENSE_SHARDS).items():
        if part in name:
            parameter = parameters[name.replace(part, whole)]
            parameter.weight_loader(parameter, weight, shard_id)
            return
    parameter = parameters[name]
    getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)


EntryClass = JambaForCausalLM
