"""A tiny Mllama with random weights: a vision encoder, and layers that read only the image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
)

from examples.demo_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, make_byte_tokenizer

IMAGE_TOKEN = "<|image|>"
HIDDEN, HEADS, KV_HEADS = 64, 4, 2
NUM_LAYERS, CROSS_LAYERS = 5, (1, 3)
IMAGE_PIXELS, PATCH_PIXELS = 28, 4
# Patches of one tile and a class token: what SGLang puts before the text, for every tile.
TILE_TOKENS = (IMAGE_PIXELS // PATCH_PIXELS) ** 2 + 1
MAX_LENGTH = 1024


@dataclass(frozen=True)
class TinyMllama:
    """``tiles`` is how many tiles an image may be cut into; every image takes room for all."""

    tiles: int = 1
    seed: int = 0

    @property
    def image_tokens(self) -> int:
        return self.tiles * TILE_TOKENS

    def write(self, path: Path) -> Path:
        """Write model, tokenizer and processor into directory ``path`` and return it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = MllamaForConditionalGeneration(self.config())
        _widen(model)
        model.generation_config = GenerationConfig(
            bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
        )
        model.eval().save_pretrained(path)
        tokenizer = make_byte_tokenizer(path)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [AddedToken(IMAGE_TOKEN, special=True)]}
        )
        assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == VOCAB_SIZE
        images = MllamaImageProcessor(
            size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}, max_image_tiles=self.tiles
        )
        MllamaProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(path)
        return path

    def config(self) -> MllamaConfig:
        text = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": HIDDEN,
            "intermediate_size": 128,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "cross_attention_layers": list(CROSS_LAYERS),
            "max_position_embeddings": MAX_LENGTH,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "initializer_range": 0.2,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        }
        vision = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_size": 64,
            "image_size": IMAGE_PIXELS,
            "patch_size": PATCH_PIXELS,
            "max_num_tiles": self.tiles,
            "intermediate_layers_indices": [1],
            "vision_output_dim": 2 * 32,
            "supported_aspect_ratios": _aspect_ratios(self.tiles),
            "initializer_range": 0.2,
        }
        return MllamaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=VOCAB_SIZE,
            tie_word_embeddings=False,
        )


# The image first: in front of it Hugging Face lets the text see nothing of it, SGLang everything.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def _aspect_ratios(tiles: int) -> list[list[int]]:
    return [[w, h] for w in range(1, tiles + 1) for h in range(1, tiles + 1) if w * h <= tiles]


def _widen(model: Any) -> None:
    """Open the gates, which start shut: the image must change what the text says."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")):
                parameter.fill_(1.0)
