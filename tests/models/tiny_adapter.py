"""Small LoRA adapters with random weights for the tiny models, in the files that PEFT writes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig

RANK = 4
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def make_tiny_adapter(path: Path, model: Path, seed: int) -> Path:
    """Write an adapter of ``model``'s attention into directory ``path`` and return it. It changes
    keys and values enough that answers differ from the model's own."""
    path.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(TARGETS),
        "bias": "none",
        "base_model_name_or_path": str(model),
    }
    (path / "adapter_config.json").write_text(json.dumps(settings))
    config = PreTrainedConfig.from_pretrained(model)
    save_file(random_weights(config, seed), path / "adapter_model.safetensors")
    return path


def random_weights(config: PreTrainedConfig, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config.num_hidden_layers):
        for target in TARGETS:
            inputs, outputs = projection_shape(config, target)
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                drawn = torch.randn(shape, generator=generator)
                weights[f"{name}.{part}.weight"] = 0.3 * drawn
    return weights


def projection_shape(config: PreTrainedConfig, target: str) -> tuple[int, int]:
    """(inputs, outputs) of an attention layer's projection."""
    heads = config.num_attention_heads if target in "q_proj o_proj" else config.num_key_value_heads
    shape = (config.hidden_size, heads * config.head_dim)
    return shape if target != "o_proj" else (shape[1], shape[0])
