"""Heads with random weights that draft: for a tiny Llama, as EAGLE and EAGLE-3 have them, in the
checkpoint of a tiny Qwen3.5 or DeepSeek-V3, as releases do, and the assistant of a Gemma-4."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from models.released_windows import GEMMA_4, GEMMA_4_NORMS
from models.tiny import HEAD_DIM, LAYER_TYPES, change_config
from safetensors.torch import load_file, save_file

_Weights = dict[str, torch.Tensor]
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


def make_gemma_assistant(path: Path, target: Path, layers: str = "wwf", seed: int = 5) -> Path:
    """Write an assistant for the Gemma-4 in directory ``target`` into directory ``path`` and return
    it: ``layers`` of half the width that attend to rows of the target's."""
    text = json.loads((target / "config.json").read_text())["text_config"]
    shared = ("vocab_size", "num_attention_heads", "head_dim", "sliding_window", "rope_parameters")
    config = transformers.Gemma4AssistantConfig(
        text_config={
            **{name: text[name] for name in (*shared, "initializer_range")},
            **GEMMA_4,
            "hidden_size": 2 * HEAD_DIM,
            "intermediate_size": 64,
            "num_hidden_layers": len(layers),
            "num_kv_shared_layers": len(layers),
            "layer_types": [LAYER_TYPES[letter] for letter in layers],
            "max_position_embeddings": text["max_position_embeddings"],
            "vocab_size_per_layer_input": 0,
        },
        backbone_hidden_size=text["hidden_size"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.Gemma4AssistantForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ending := next((e for e in GEMMA_4_NORMS if name.endswith(e)), None):
                parameter.fill_(GEMMA_4_NORMS[ending])
    model.save_pretrained(path)
    return path


def with_qwen_head(path: Path, target: Path, like_layer: int) -> Path:
    """Write the Qwen3.5 in directory ``target``, with a head that predicts one token more, into
    directory ``path`` and return it. The head's layer has the shape of the target's
    ``like_layer``, one of attention."""

    def head(layer: _Weights, hidden: int, generator: torch.Generator) -> _Weights:
        norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
        return {
            **{f"mtp.layers.0.{name}": weight for name, weight in layer.items()},
            **{f"mtp.{name}.weight": torch.zeros(hidden) for name in norms},
            "mtp.fc.weight": _random(generator, hidden, 2 * hidden),
        }

    return _with_head(path, target, like_layer, head)


def with_deepseek_head(path: Path, target: Path, like_layer: int) -> Path:
    """The same of a DeepSeek-V3, whose head is the layer behind its last."""
    config = json.loads((target / "config.json").read_text())
    first = f"model.layers.{config['num_hidden_layers']}."

    def head(layer: _Weights, hidden: int, generator: torch.Generator) -> _Weights:
        norms = ("enorm", "hnorm", "shared_head.norm")
        return {
            **{f"{first}{name}": weight for name, weight in layer.items()},
            **{f"{first}{name}.weight": torch.ones(hidden) for name in norms},
            f"{first}eh_proj.weight": _random(generator, hidden, 2 * hidden),
        }

    _with_head(path, target, like_layer, head)
    change_config(path / "config.json", {"num_nextn_predict_layers": 1})
    return path


def _with_head(
    path: Path,
    target: Path,
    like_layer: int,
    head: Callable[[_Weights, int, torch.Generator], _Weights],
) -> Path:
    shutil.copytree(target, path)
    file = path / "model.safetensors"
    weights, generator = load_file(file), torch.Generator().manual_seed(5)
    first = f"model.layers.{like_layer}."
    layer = {
        name.removeprefix(first): _random(generator, *weight.shape)
        for name, weight in weights.items()
        if name.startswith(first)
    }
    added = head(layer, weights["model.norm.weight"].shape[0], generator)
    save_file(weights | added, file, metadata={"format": "pt"})
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
