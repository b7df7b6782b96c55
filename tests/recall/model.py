"""The recall model: a very small Gemma-3 with window and full layers."""

from transformers import Gemma3TextConfig

from jenga_sglang.demo.model import demo_config

WINDOW = 32
MAX_LENGTH = 2048


def recall_config() -> Gemma3TextConfig:
    """Two window layers and two full layers; 0.2 million parameters."""
    return demo_config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        # Queries and keys are normalised: a small divisor lets attention become sharp.
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        max_position_embeddings=MAX_LENGTH,
    )
