"""Tiny models of some architectures with random weights, made on the spot; they speak bytes.

Weights are drawn wide enough that greedy output wanders instead of repeating one token, and that
tokens far back change what follows.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedConfig

from examples.demo_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, make_byte_tokenizer

WINDOW = 48
MAX_LENGTH = 2048
HEAD_DIM = 16
LAYER_TYPES = {
    "w": "sliding_attention",
    "f": "full_attention",
    "c": "conv",
    "d": "linear_attention",
    "k": "chunked_attention",
}


@dataclass(frozen=True)
class Architecture:
    """Hugging Face's class names without their endings, and the layers: w for window, f for full,
    c for a short convolution, d for a gated delta net, k for a chunk.

    Where ``layers`` says full for a model whose config has a window, SGLang's class ignores it.
    """

    config: str
    model: str
    layers: str
    fields: dict[str, Any] = field(default_factory=dict)
    weight_scale: float = 0.2
    # Constants for the norms whose names end so.
    norms: dict[str, float] = field(default_factory=dict)
    # Layers keep a recurrent state beside what their letter says; without letters, nothing else.
    states: bool = False
    # Parts of weights' names that Hugging Face saves otherwise than SGLang reads them.
    renamed: dict[str, str] = field(default_factory=dict)
    # Endings of names of weights that SGLang keeps in bfloat16, whatever the model's dtype.
    rounded: tuple[str, ...] = ()
    # Of a model that sees: its other configs, around that of the text.
    around: dict[str, Any] = field(default_factory=dict)
    # Fields of the saved config as releases write them, where Hugging Face's class saves others;
    # None leaves one out.
    saved: dict[str, Any] = field(default_factory=dict)
    # Makes of the written checkpoint, in a folder, one as released.
    as_released: Callable[[Path], None] | None = None
    # What SGLang must be told beside it: fields of `ServerArgs`.
    flags: dict[str, Any] = field(default_factory=dict)
    # SGLang's class reads so many tokens more than the window of the config.
    sees_more: int = 0

    @property
    def num_groups(self) -> int:
        """Layer groups that a server should find."""
        return len(set(self.layers)) + self.states

    @property
    def has_states(self) -> bool:
        return self.states or not set(self.layers).isdisjoint("cd")

    def make_config(self) -> PreTrainedConfig:
        fields: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 4 * HEAD_DIM,
            "intermediate_size": 128,
            "num_hidden_layers": len(self.layers),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": MAX_LENGTH,
            "initializer_range": self.weight_scale,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        }
        if set(self.layers) - {"f"}:
            fields["layer_types"] = [LAYER_TYPES[letter] for letter in self.layers]
        if "w" in self.layers:
            fields["sliding_window"] = WINDOW
        fields |= self.fields
        if self.around:
            fields = {"text_config": fields, **self.around}
        config_class = getattr(transformers, f"{self.config}Config")
        return config_class(**fields)


# What Ministral-3 and DeepSeek-V3 do to positions, with 2,048 of them.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": MAX_LENGTH // 4,
    "max_position_embeddings": MAX_LENGTH,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

ARCHITECTURES = {
    "llama": Architecture("Llama", "Llama", "ffff"),
    "mistral": Architecture("Mistral", "Mistral", "ffff", {"sliding_window": WINDOW}),
    "ministral": Architecture(
        "Ministral3",
        "Ministral3",
        "ffff",
        {
            "sliding_window": WINDOW,
            "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1},
        },
    ),
    "gemma3": Architecture(
        "Gemma3Text",
        "Gemma3",
        "wwwwwf",
        {"query_pre_attn_scalar": HEAD_DIM},
        weight_scale=0.1,
        # Input and output share the embedding: what layers add must drown it, or tokens repeat.
        norms={"post_attention_layernorm.weight": 9.0, "post_feedforward_layernorm.weight": 9.0},
    ),
    "cohere2": Architecture("Cohere2", "Cohere2", "wwwfwwwf", {"logit_scale": 1.0}),
    "olmo3": Architecture("Olmo3", "Olmo3", "wwwfwwwf"),
    # SGLang's classes of these two ignore the window; Qwen2 has it in its upper layers only.
    "phi3": Architecture("Phi3", "Phi3", "ffff", {"sliding_window": WINDOW}),
    "qwen2": Architecture(
        "Qwen2",
        "Qwen2",
        "ffff",
        {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    ),
    "falcon_h1": Architecture(
        "FalconH1",
        "FalconH1",
        "fff",
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 2,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
        },
        states=True,
    ),
    "lfm2": Architecture(
        "Lfm2", "Lfm2", "ccfccf", {"conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
    ),
    "qwen3_5": Architecture(
        "Qwen3_5Text",
        "Qwen3_5",
        "ddfddf",
        {
            "full_attention_interval": 3,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
    "minicpm3": Architecture(
        "MiniCPM3",
        "MiniCPM3",
        "fff",
        {
            "num_key_value_heads": 4,
            "head_dim": None,
            "kv_lora_rank": 32,
            "q_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "scale_emb": 1,
            "dim_model_base": 64,
        },
    ),
    # All its layers dense; `released.py` has one with experts.
    "deepseek_v3": Architecture(
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
            "first_k_dense_replace": 3,
            "n_routed_experts": 4,
            "moe_layer_freq": 1,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": YARN,
        },
    ),
    "kimi_linear": Architecture(
        "KimiLinear",
        "KimiLinear",
        "ddfddf",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "v_head_dim": 16,
            "mlp_layer_types": ["dense"] * 6,
            "first_k_dense_replace": 6,
            "num_local_experts": 4,
            "linear_attn_config": {
                "kda_layers": [1, 2, 4, 5],
                "full_attn_layers": [3, 6],
                "num_heads": 4,
                "head_dim": 16,
                "short_conv_kernel_size": 4,
            },
        },
        renamed={".block_sparse_moe.": ".mlp."},
    ),
    "falcon_mamba": Architecture(
        "FalconMamba",
        "FalconMamba",
        "",
        {
            "num_hidden_layers": 3,
            "state_size": 8,
            "conv_kernel": 4,
            "time_step_rank": 8,
            "time_step_min": 0.01,
            "time_step_max": 1.0,
            "tie_word_embeddings": False,
        },
        states=True,
    ),
    # SGLang has no class for it: its Transformers backend serves it. Every other layer rotates.
    "smollm3": Architecture("SmolLM3", "SmolLM3", "ffff", {"no_rope_layer_interval": 2}),
}


def make_tiny_model(path: Path, architecture: str) -> Path:
    """Write model, tokenizer and generation settings into directory ``path`` and return it."""
    # A seed of its own for each: two architectures may have the same shape.
    seed = list(ARCHITECTURES).index(architecture)
    return write_model(path, ARCHITECTURES[architecture], seed)


def write_model(path: Path, kind: Architecture, seed: int) -> Path:
    """The same for an architecture that is not on the list."""
    model = random_model(kind, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    model.save_pretrained(path)
    if kind.renamed:
        rename_weights(path / "model.safetensors", kind.renamed)
    if kind.saved:
        change_config(path / "config.json", kind.saved)
    if kind.as_released:
        kind.as_released(path)
    make_byte_tokenizer(path)
    return path


def change_config(file: Path, saved: Mapping[str, Any]) -> None:
    """Set fields of a config, or take out those that are None."""
    config = json.loads(file.read_text()) | saved
    kept = {name: value for name, value in config.items() if value is not None}
    file.write_text(json.dumps(kept, indent=2))


def rename_weights(file: Path, renamed: Mapping[str, str]) -> None:
    """Replace parts of the names in a file of weights."""
    weights = {}
    for name, weight in load_file(file).items():
        for part, instead in renamed.items():
            name = name.replace(part, instead)
        weights[name] = weight
    save_file(weights, file, metadata={"format": "pt"})


def random_model(kind: Architecture, seed: int) -> torch.nn.Module:
    """Return a float32 model; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ending = "ForConditionalGeneration" if kind.around else "ForCausalLM"
        model = getattr(transformers, f"{kind.model}{ending}")(kind.make_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for ending, value in kind.norms.items():
                if name.endswith(ending):
                    parameter.fill_(value)
            if name.endswith(kind.rounded):
                parameter.copy_(parameter.bfloat16())
    return model.eval()
