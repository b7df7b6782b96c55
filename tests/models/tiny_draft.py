"""Heads with random weights that draft for a tiny Llama, as EAGLE and EAGLE-3 have them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TAPPED_LAYERS = [0, 1, 2]  # of the target: an EAGLE-3 head reads what comes out of these


def make_eagle_head(path: Path, target: Path, *, is_third: bool, seed: int = 5) -> Path:
    """Write a head for the Llama in directory ``target`` into directory ``path`` and return it."""
    config = json.loads((target / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "tie_word_embeddings": False}
    generator = torch.Generator().manual_seed(seed)
    weights = (_eagle3 if is_third else _eagle)(config, generator)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _eagle(config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    config["architectures"] = ["LlamaForCausalLMEagle"]
    hidden = config["hidden_size"]
    layer = _layer(config, generator, inputs=hidden)
    return {
        "fc.weight": _random(generator, hidden, 2 * hidden),
        "fc.bias": torch.zeros(hidden),
        **{f"layers.0.{name}": weight for name, weight in layer.items()},
    }


def _eagle3(config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    config["architectures"] = ["LlamaForCausalLMEagle3"]
    config["draft_vocab_size"] = config["vocab_size"]
    config["eagle_config"] = {
        "eagle_aux_hidden_state_layer_ids": TAPPED_LAYERS,
        "use_aux_hidden_state": True,
    }
    hidden = config["hidden_size"]
    layer = _layer(config, generator, inputs=2 * hidden)
    layer |= {name: torch.ones(hidden) for name in ("hidden_norm.weight", "input_layernorm.weight")}
    return {
        "fc.weight": _random(generator, hidden, len(TAPPED_LAYERS) * hidden),
        "norm.weight": torch.ones(hidden),
        "lm_head.weight": _random(generator, config["vocab_size"], hidden),
        **{f"midlayer.{name}": weight for name, weight in layer.items()},
    }


def _layer(
    config: dict[str, Any], generator: torch.Generator, *, inputs: int
) -> dict[str, torch.Tensor]:
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {
        "self_attn.q_proj": (q, inputs),
        "self_attn.k_proj": (kv, inputs),
        "self_attn.v_proj": (kv, inputs),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    weights = {f"{name}.weight": _random(generator, *shape) for name, shape in shapes.items()}
    return weights | {"post_attention_layernorm.weight": torch.ones(hidden)}


def _random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=generator)
