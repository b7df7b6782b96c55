"""Tiny models with the layer patterns of models that people serve: experts, soft caps, sinks, heads
that differ by kind of layer."""

from typing import Any

from models.tiny import HEAD_DIM, WINDOW, Architecture

CHUNK = 64
EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
# As `tiny.py` does for Gemma-3: input and output share the embedding.
GEMMA_NORMS = {"post_attention_layernorm.weight": 9.0, "post_feedforward_layernorm.weight": 9.0}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
DELTA_NET: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
GEMMA_4: dict[str, Any] = {
    "num_key_value_heads": 2,
    "global_head_dim": 2 * HEAD_DIM,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
}
GEMMA_4_NORMS = {
    "post_attention_layernorm.weight": 10.0,
    "post_feedforward_layernorm.weight": 10.0,
}
GEMMA_4_AROUND: dict[str, Any] = {
    "vision_config": SMALL_VISION | {"num_key_value_heads": 2, "head_dim": 16},
    "audio_config": None,
}

RELEASED = {
    "qwen3": Architecture("Qwen3", "Qwen3", "ffff"),
    "qwen3_moe": Architecture("Qwen3Moe", "Qwen3Moe", "ffff", EXPERTS | {"norm_topk_prob": True}),
    "mixtral": Architecture(
        "Mixtral", "Mixtral", "ffff", {"num_local_experts": 5, "num_experts_per_tok": 2}
    ),
    "glm4_moe": Architecture(
        "Glm4Moe",
        "Glm4Moe",
        "ffff",
        {
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
            "num_nextn_predict_layers": 0,
        },
    ),
    "deepseek_v3_moe": Architecture(
        "DeepseekV3",
        "DeepseekV3",
        "fff",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_layer_freq": 1,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
    "gpt_oss": Architecture(
        "GptOss",
        "GptOss",
        "wfwf",
        {"num_local_experts": 5, "num_experts_per_tok": 2},
        rounded=(".sinks",),
    ),
    "gemma2": Architecture(
        "Gemma2",
        "Gemma2",
        "wfwf",
        {
            "hidden_act": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": HEAD_DIM,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
        },
        weight_scale=0.1,
        norms=GEMMA_NORMS,
    ),
    "llama4": Architecture(
        "Llama4",
        "Llama4",
        "kkkf",
        {
            "attention_chunk_size": CHUNK,
            "no_rope_layer_interval": 4,
            "floor_scale": 32,
            "use_qk_norm": False,
            "num_local_experts": 5,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 96,
        },
        around={
            "vision_config": SMALL_VISION
            | {
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
                "image_size": 28,
            }
        },
    ),
    "gemma4": Architecture(
        "Gemma4",
        "Gemma4",
        "wwwwwf",
        GEMMA_4,
        weight_scale=0.1,
        norms=GEMMA_4_NORMS,
        around=GEMMA_4_AROUND,
    ),
    "gemma4_moe": Architecture(
        "Gemma4",
        "Gemma4",
        "wwwwwf",
        GEMMA_4
        | {
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        weight_scale=0.1,
        norms=GEMMA_4_NORMS,
        around=GEMMA_4_AROUND,
    ),
    "qwen2_moe": Architecture(
        "Qwen2Moe", "Qwen2Moe", "ffff", EXPERTS | {"shared_expert_intermediate_size": 48}
    ),
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
    "minimax_m2": Architecture(
        "MiniMaxM2",
        "MiniMaxM2",
        "ffff",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rotary_dim": HEAD_DIM // 2,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "use_qk_norm": True,
            "qk_norm_type": "per_layer",
            "num_mtp_modules": 0,
        },
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
}

DEPENDENCIES = {
    "gpt_oss": [f"window {WINDOW}", "full"],
    "gemma2": [f"window {WINDOW}", "full"],
    "gemma4": [f"window {WINDOW}", "full"],
    "gemma4_moe": [f"window {WINDOW}", "full"],
    "llama4": [f"chunk {CHUNK}", "full"],
}
