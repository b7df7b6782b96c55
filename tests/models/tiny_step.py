"""Step-3.5, tiny. Hugging Face has its text model inside Step-3.7, and writes the weights as
Step-3.5's release names them; the config, and the class that reads it, are as that release has
them."""

import json
from pathlib import Path
from typing import Any

from models.tiny import HEAD_DIM, WINDOW, Architecture

LAYERS = "fwwwfw"
EXPERTS, EXPERTS_A_TOKEN, EXPERT_SIZE, SHARED_SIZE, FACTOR = 5, 2, 32, 48, 2.5
WINDOW_HEADS = 6  # queries'; the other layers have 4
ROPE = {"f": (5_000_000.0, 0.5), "w": (10_000.0, 1.0)}
FULL_LAYER, WINDOW_LAYER = "full_attention", "sliding_attention"
# Beside the checkpoint: its config as Hugging Face's class reads it, and a link to the weights.
HUGGING_FACE = "hugging_face"
CONFIG_CLASS = """from transformers import PretrainedConfig


class Step3p5Config(PretrainedConfig):
    model_type = "step3p5"

    def __init__(self, rope_theta=None, **fields):
        super().__init__(**fields)
        self.rope_theta = rope_theta  # one a layer, which Transformers knows nothing of
"""


def _rope(letter: str) -> dict[str, Any]:
    theta, rotated = ROPE[letter]
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": rotated}


def as_released(path: Path) -> None:
    """Of Step-3.7's checkpoint in ``path`` make one of Step-3.5."""
    own = path / HUGGING_FACE
    own.mkdir()
    (path / "config.json").rename(own / "config.json")
    (own / "model.safetensors").symlink_to(path / "model.safetensors")
    text = json.loads((own / "config.json").read_text())["text_config"]
    same = "vocab_size hidden_size intermediate_size num_hidden_layers head_dim rms_norm_eps"
    same += " max_position_embeddings layer_types sliding_window"
    heads = {"num_attention_heads": 4, "num_attention_groups": 2}
    fields = {name: text[name] for name in same.split()} | heads
    fields |= {
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "auto_map": {"AutoConfig": "configuration_step3p5.Step3p5Config"},
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
        "attention_other_setting": {
            "attention_type": WINDOW_LAYER,
            "num_attention_heads": WINDOW_HEADS,
            "num_attention_groups": 2,
            "head_dim": HEAD_DIM,
        },
        "rope_theta": [ROPE[letter][0] for letter in LAYERS],
        "partial_rotary_factors": [ROPE[letter][1] for letter in LAYERS],
        "rope_scaling": None,
        "yarn_only_types": [],
        "use_head_wise_attn_gate": True,
        "moe_layers_enum": "1,2,3,4,5",
        "moe_num_experts": EXPERTS,
        "moe_top_k": EXPERTS_A_TOKEN,
        "moe_intermediate_size": EXPERT_SIZE,
        "share_expert_dim": SHARED_SIZE,
        "moe_router_scaling_factor": FACTOR,
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
        "swiglu_limits": [0.0] * len(LAYERS),
        "swiglu_limits_shared": [0.0] * len(LAYERS),
    }
    (path / "config.json").write_text(json.dumps(fields, indent=2))
    (path / "configuration_step3p5.py").write_text(CONFIG_CLASS)


STEP_3P5 = Architecture(
    "Step3p7",
    "Step3p7",
    LAYERS,
    {
        "sliding_window": WINDOW,
        "num_sliding_attention_heads": WINDOW_HEADS,
        "mlp_layer_types": ["dense", *["sparse"] * (len(LAYERS) - 1)],
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_A_TOKEN,
        "moe_intermediate_size": EXPERT_SIZE,
        "share_expert_dim": SHARED_SIZE,
        "moe_router_scaling_factor": FACTOR,
        "query_pre_attn_scalar": HEAD_DIM,
        "rope_parameters": {FULL_LAYER: _rope("f"), WINDOW_LAYER: _rope("w")},
    },
    around={
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
    },
    as_released=as_released,
    flags={"trust_remote_code": True},
    sees_more=1,
)
