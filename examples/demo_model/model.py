"""Writes a small Gemma-3 text model with random weights: `python -m examples.demo_model.model DIR`.

The architecture is the real one (five window layers to one full layer, grouped-query attention),
so a server treats it as it would a trained Gemma-3; what it says is noise.
"""

import argparse
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

from examples.demo_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, make_byte_tokenizer

DTYPES = ("float32", "bfloat16")
HEAD_DIM = 64  # the smallest that every attention kernel on a GPU takes


def make_demo_model(
    path: str | Path, *, seed: int = 0, dtype: str = "bfloat16", **config: object
) -> Path:
    """Write model, tokenizer and generation settings into directory `path` and return it.

    `config` overrides fields of `demo_config`; the same seed and fields give the same weights.
    """
    path = Path(path)
    model = random_gemma3(demo_config(**config), seed)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=True
    )
    model.to(getattr(torch, dtype)).save_pretrained(path)
    make_byte_tokenizer(path)
    return path


def demo_config(**overrides: object) -> Gemma3TextConfig:
    """Return a Gemma-3 text configuration with 12 layers (10 window, 2 full) and a window of 64."""
    fields: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 64,
        "max_position_embeddings": 8192,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    return Gemma3TextConfig(**(fields | overrides))


def random_gemma3(config: Gemma3TextConfig, seed: int) -> Gemma3ForCausalLM:
    """Return a model with random weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gemma3ForCausalLM(config).eval()


def main() -> None:
    """Write a model where the command line says, and say that it only babbles."""
    parser = argparse.ArgumentParser(description="Write a small Gemma-3 model, random weights.")
    parser.add_argument("path", metavar="DIR", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    args = parser.parse_args()
    make_demo_model(args.path, seed=args.seed, dtype=args.dtype)
    print(
        f"Wrote a demonstration model to {args.path}.\n"
        "Its weights are random: it answers any prompt, and it babbles. "
        "It shows how memory is used, not what a language model can say."
    )


if __name__ == "__main__":
    main()
