"""Models with random weights for the comparison: a hybrid one and one with a single group."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.demo_model.model import make_demo_model
from examples.demo_model.tokenizer import VOCAB_SIZE, make_byte_tokenizer


def make_gemma_shaped(path: Path, *, window: int) -> Path:
    """Gemma-3: ten layers with a window and two without, float32."""
    return make_demo_model(path, dtype="float32", sliding_window=window)


def make_llama_shaped(path: Path) -> Path:
    """Llama: full attention on every layer, float32, otherwise of the same size."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)
    make_byte_tokenizer(path)
    return path
