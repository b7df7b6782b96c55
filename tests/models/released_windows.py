"""Windows or chunks beside full attention, with sinks, soft caps, shared KV, and heads that differ
by kind of layer."""

from typing import Any

from models.released_full import EXPERTS
from models.tiny import HEAD_DIM, WINDOW, Architecture

CHUNK = 64
# As `tiny.py` does for Gemma-3: input and output share the embedding.
GEMMA_NORMS = {"post_attention_layernorm.weight": 9.0, "post_feedforward_layernorm.weight": 9.0}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
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

WINDOWS = {
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
    "gemma3n": Architecture(
        "Gemma3nText",
        "Gemma3n",
        "wwfwwfwwf",
        {
            "intermediate_size": [64, 96, 64] * 3,
            "num_kv_shared_layers": 3,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 260,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.5] * 3 + [0.0] * 6,
        },
        weight_scale=0.1,
        sees_more=1,
    ),
    "mimo_v2_flash": Architecture(
        "MiMoV2Flash",
        "MiMoV2Flash",
        "fwwwfw",
        {
            "num_key_value_heads": 1,  # window layers have twice as many
            "head_dim": 24,
            "v_head_dim": 16,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        saved={
            "hybrid_layer_pattern": [0, 1, 1, 1, 0, 1],
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 24,
            "swa_v_head_dim": 16,
            "sliding_window_size": WINDOW,
            "rope_theta": 5_000_000.0,
            "swa_rope_theta": 10_000.0,
            "partial_rotary_factor": 0.334,
            "layernorm_epsilon": 1e-5,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "moe_layer_freq": [0, 1, 1, 1, 1, 1],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
        },
        # Hugging Face's config class lists rotations by kind of layer, which SGLang cannot read.
        flags={"json_model_override_args": '{"rope_scaling": null, "n_shared_experts": null}'},
        sees_more=1,
    ),
    "exaone4": Architecture(
        "Exaone4",
        "Exaone4",
        "wwwfwwwf",
        {
            "sliding_window_pattern": "LLLG",
            # What SGLang's class takes for rotations and norms of keys, whatever the config says.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "rms_norm_eps": 1e-6,
        },
    ),
    "afmoe": Architecture(
        "Afmoe",
        "Afmoe",
        "wwwfwwwf",
        EXPERTS
        | {
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "route_scale": 1.5,
            "mup_enabled": True,
        },
    ),
}
