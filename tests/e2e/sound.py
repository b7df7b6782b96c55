"""A tiny Whisper with random weights, and sound for it."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from examples.demo_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, make_byte_tokenizer

MEL_BINS = 8
# What the encoder makes of a piece of sound; not a whole number of pages.
SOUND_TOKENS = 40
MAX_LENGTH = 448


def make_tiny_whisper(path: Path) -> Path:
    """Write model and tokenizer into directory ``path`` and return it."""
    config = WhisperConfig(
        vocab_size=VOCAB_SIZE,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=MEL_BINS,
        max_source_positions=SOUND_TOKENS,
        max_target_positions=MAX_LENGTH,
        init_std=0.2,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        decoder_start_token_id=BOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    model.eval().save_pretrained(path)
    make_byte_tokenizer(path)
    return path


def features(seed: int) -> torch.Tensor:
    """(1, mel bins, frames) float32; the encoder halves the frames."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, MEL_BINS, 2 * SOUND_TOKENS), generator=generator)


def multimodal_inputs(seed: int) -> Any:
    """What SGLang's processor makes of a piece of sound."""
    from sglang.srt.managers.schedule_batch import (
        Modality,
        MultimodalDataItem,
        MultimodalProcessorOutput,
    )

    item = MultimodalDataItem(modality=Modality.AUDIO, feature=features(seed))
    item.set_pad_value()
    return MultimodalProcessorOutput(mm_items=[item])


@cache
def _load(path: Path) -> Any:
    return WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


def greedy_tokens(path: Path, prompt: list[int], seed: int, count: int) -> list[int]:
    """Hugging Face's likeliest continuation of a transcript."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            out = _load(path)(
                input_features=features(seed), decoder_input_ids=torch.tensor([tokens])
            )
            tokens.append(int(out.logits[0, -1].argmax()))
    return tokens[len(prompt) :]
