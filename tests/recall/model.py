"""The recall model: a very small Gemma-3 with window and full layers, trained by `train.py`."""

from pathlib import Path

from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from examples.demo_model.model import demo_config
from examples.demo_model.tokenizer import make_byte_tokenizer

WINDOW = 32
MAX_LENGTH = 2048
WEIGHTS = Path(__file__).parent / "weights.safetensors"


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


def make_recall_model(path: Path) -> Path:
    """Write the trained model and its tokenizer into directory ``path`` and return it."""
    model = Gemma3ForCausalLM(recall_config())
    # The output layer shares the embedding, which is stored once.
    missing, unexpected = model.load_state_dict(load_file(WEIGHTS), strict=False)
    if unexpected or missing != ["lm_head.weight"]:
        raise ValueError(f"{WEIGHTS.name}: missing {missing}, unexpected {unexpected}")
    model.save_pretrained(path)
    make_byte_tokenizer(path)
    return path
