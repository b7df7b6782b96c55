"""Recurrent layers beside full attention, most with experts."""

from typing import Any

from models.released_full import EXPERTS
from models.tiny import Architecture

DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
NEMOTRON_H: dict[str, Any] = {
    "ssm_state_size": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
    # Hugging Face keeps time steps above the least one, SGLang does not.
    "time_step_min": 1e-30,
    "time_step_floor": 0.1,
}


def nemotron_h(pattern: str, fields: dict[str, Any]) -> Architecture:
    """M for a Mamba-2 layer, * for attention, - for a dense layer, E for experts."""
    names = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    layers = {
        "num_hidden_layers": len(pattern),
        "layers_block_type": [names[letter] for letter in pattern],
    }
    released = {
        "hybrid_override_pattern": pattern,
        "layers_block_type": None,
        "mamba_n_groups": NEMOTRON_H["n_groups"],
        "mamba_d_conv": 4,
    }
    return Architecture(
        "NemotronH", "NemotronH", "f", NEMOTRON_H | layers | fields, states=True, saved=released
    )


STATES = {
    "qwen3_next": Architecture(
        "Qwen3Next",
        "Qwen3Next",
        "ddfddf",
        EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 48, "full_attention_interval": 3},
    ),
    "lfm2_moe": Architecture(
        "Lfm2Moe",
        "Lfm2Moe",
        "ccfccf",
        EXPERTS | {"num_dense_layers": 1, "routed_scaling_factor": 2.5},
    ),
    "kimi_linear_moe": Architecture(
        "KimiLinear",
        "KimiLinear",
        "ddfddf",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "mlp_layer_types": ["sparse"] * 6,
            "first_k_dense_replace": 0,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "routed_scaling_factor": 2.5,
            "linear_attn_config": {
                "kda_layers": [1, 2, 4, 5],
                "full_attn_layers": [3, 6],
                "num_heads": 4,
                "head_dim": 16,
                "short_conv_kernel_size": 4,
            },
        },
    ),
    "qwen3_5_moe": Architecture(
        "Qwen3_5MoeText",
        "Qwen3_5Moe",
        "ddfddf",
        EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 48, "full_attention_interval": 3},
    ),
    "granite4": Architecture(
        "GraniteMoeHybrid",
        "GraniteMoeHybrid",
        "ddfddf",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "shared_intermediate_size": 48,
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
            "attention_multiplier": 0.25,
        },
    ),
    "nemotron_h": nemotron_h("M-*M-", {}),
    "nemotron_h_moe": nemotron_h(
        "ME*ME",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 48,
            "routed_scaling_factor": 2.5,
        },
    ),
    # Its class is this project's own: `jenga_sglang.models`.
    "jamba": Architecture(
        "Jamba",
        "Jamba",
        "f",
        {
            "num_hidden_layers": 6,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
        states=True,
    ),
}
