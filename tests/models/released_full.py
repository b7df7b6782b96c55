"""Full attention in every layer: with experts or without, latent rows, the Transformers backend."""

from typing import Any

from models.tiny import HEAD_DIM, Architecture

EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}

FULL = {
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
    "qwen2_moe": Architecture(
        "Qwen2Moe", "Qwen2Moe", "ffff", EXPERTS | {"shared_expert_intermediate_size": 48}
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
    "glm4_moe_lite": Architecture(
        "Glm4MoeLite",
        "Glm4MoeLite",
        "fff",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "routed_scaling_factor": 1.8,
        },
    ),
    # SGLang has no class for it: its Transformers backend serves it.
    "seed_oss": Architecture(
        "SeedOss", "SeedOss", "ffff", {"attention_dropout": 0.0, "residual_dropout": 0.0}
    ),
}
