"""Tiny models that read images in their text, and the images: their tokens, and what an encoder is
given of them, as SGLang's processors and as Hugging Face's hand it over.

A prompt has an image's tokens between those that open and close it; an image is drawn from a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models.released_windows import GEMMA_4, GEMMA_4_NORMS, GEMMA_NORMS, SMALL_VISION
from models.tiny import HEAD_DIM, Architecture

from examples.demo_model.tokenizer import VOCAB_SIZE

OPENS, CLOSES, IMAGE, VIDEO = range(VOCAB_SIZE, VOCAB_SIZE + 4)
VOCAB: dict[str, Any] = {"vocab_size": VOCAB_SIZE + 4}
PATCH, GEMMA_3_SIDE = 4, 8
MERGED, POOLED = 2, 3  # patches a side that one token of Qwen3-VL, and of Gemma-4, stands for
# By how many tokens an image has: height and width, in tokens.
SHAPES = {24: (4, 6), 40: (5, 8), 64: (8, 8), 72: (8, 9)}


@dataclass(frozen=True)
class Sight:
    """A model and its images: how many tokens they have; the data of one, by name, of which SGLang
    has `feature` apart; what Hugging Face calls the feature; and the tokens' types."""

    kind: Architecture
    image_tokens: tuple[int, ...]
    data: Callable[[int, int], dict[str, torch.Tensor]]
    feature: str
    types: str
    # Its positions are SGLang's processor's to work out.
    has_own_positions: bool = False


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _gemma_3(seed: int, tokens: int) -> dict[str, torch.Tensor]:
    side = PATCH * GEMMA_3_SIDE
    return {"pixel_values": _drawn(seed, 1, 3, side, side)}


def _qwen_3(seed: int, tokens: int) -> dict[str, torch.Tensor]:
    height, width = (MERGED * side for side in SHAPES[tokens])
    return {
        "pixel_values": _drawn(seed, height * width, 3 * 2 * PATCH * PATCH),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }


def _gemma_4(seed: int, tokens: int) -> dict[str, torch.Tensor]:
    height, width = (POOLED * side for side in SHAPES[tokens])
    places = [[x, y] for y in range(height) for x in range(width)]
    return {
        "pixel_values": _drawn(seed, 1, height * width, 3 * PATCH * PATCH),
        "image_position_ids": torch.tensor([places]),
    }


GEMMA_TOKENS: dict[str, Any] = {"boi_token_index": OPENS, "eoi_token_index": CLOSES}
SIGHTS = {
    "qwen3_vl": Sight(
        Architecture(
            "Qwen3VL",
            "Qwen3VL",
            "ffff",
            VOCAB
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10_000.0,
                    "mrope_section": [4, 2, 2],
                    "mrope_interleaved": True,
                }
            },
            around={
                "image_token_id": IMAGE,
                "video_token_id": VIDEO,
                "vision_start_token_id": OPENS,
                "vision_end_token_id": CLOSES,
                "vision_config": {
                    "depth": 3,
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_heads": 2,
                    "patch_size": PATCH,
                    "spatial_merge_size": MERGED,
                    "out_hidden_size": 4 * HEAD_DIM,
                    "num_position_embeddings": 64,
                    "deepstack_visual_indexes": [0, 1],
                    "initializer_range": 0.2,
                },
            },
        ),
        (24, 40, 72),
        _qwen_3,
        "pixel_values",
        "mm_token_type_ids",
        has_own_positions=True,
    ),
    "gemma3_sight": Sight(
        Architecture(
            "Gemma3",
            "Gemma3",
            "wwwwwf",
            VOCAB | {"query_pre_attn_scalar": HEAD_DIM},
            weight_scale=0.1,
            norms=GEMMA_NORMS,
            around=GEMMA_TOKENS
            | {
                "image_token_index": IMAGE,
                "mm_tokens_per_image": GEMMA_3_SIDE**2,
                "vision_config": SMALL_VISION
                | {"patch_size": PATCH, "image_size": PATCH * GEMMA_3_SIDE}
                | {"vision_use_head": False},
            },
            flags={"enable_multimodal": True},
        ),
        (GEMMA_3_SIDE**2,),
        _gemma_3,
        "pixel_values",
        "token_type_ids",
    ),
    "gemma4_sight": Sight(
        Architecture(
            "Gemma4",
            "Gemma4",
            "wwwwwf",
            VOCAB | GEMMA_4 | {"use_bidirectional_attention": "vision"},
            weight_scale=0.1,
            norms=GEMMA_4_NORMS,
            around={
                "boi_token_id": OPENS,
                "eoi_token_id": CLOSES,
                "image_token_id": IMAGE,
                "video_token_id": VIDEO,
                "audio_config": None,
                "vision_config": SMALL_VISION
                | {
                    "num_key_value_heads": 2,
                    "head_dim": 16,
                    "patch_size": PATCH,
                    "pooling_kernel_size": POOLED,
                    "position_embedding_size": 64,
                    "initializer_range": 0.2,
                },
            },
        ),
        (24, 40, 72),
        _gemma_4,
        "pixel_values",
        "mm_token_type_ids",
    ),
}


def of_hugging_face(
    sight: Sight, pictures: dict[int, tuple[int, int]], length: int
) -> dict[str, torch.Tensor]:
    """What Hugging Face's model is given of a prompt's ``pictures`` beside its tokens."""
    types = torch.zeros(1, length, dtype=torch.int64)
    for first, (_, tokens) in pictures.items():
        types[0, first : first + tokens] = 1
    drawn = [sight.data(*pictures[first]) for first in sorted(pictures)]
    if not drawn:
        return {}
    whole = {name: _together([one[name] for one in drawn]) for name in drawn[0]}
    return {sight.types: types, **whole}


def _together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images of one size stand beside one another; patches are padded to one size."""
    if parts[0].dim() < 3 or len({part.shape for part in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    padded = [(part, longest - part.shape[1]) for part in parts]
    value = -1 if parts[0].dtype == torch.int64 else 0
    return torch.cat([torch.nn.functional.pad(p, (0, 0, 0, n), value=value) for p, n in padded])


def positions(prompt: Sequence[int], pictures: dict[int, tuple[int, int]]) -> dict[str, Any]:
    """What SGLang's processor works out of where Qwen3-VL's tokens are."""
    from sglang.srt.layers.rotary_embedding import MRotaryEmbedding

    grids = [_qwen_3(*pictures[first])["image_grid_thw"] for first in sorted(pictures)]
    places, delta = MRotaryEmbedding.get_rope_index(
        spatial_merge_size=MERGED,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=OPENS,
        model_type="qwen3_vl",
        input_ids=torch.tensor([prompt]),
        image_grid_thw=torch.cat(grids),
    )
    return {"mrope_positions": places.squeeze(1), "mrope_position_delta": delta}
