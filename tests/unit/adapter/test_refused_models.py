"""Models that no Jenga pool can serve end the start with one line."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from transformers import PreTrainedConfig

from jenga_sglang.adapter.build import build_pools


def configurator(*kinds: AttentionType) -> Any:
    """What SGLang builds pools with, of a model with a layer of each kind."""
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(
        RadixAttention(2, 16, 1.0, 2, layer_id=number, attn_type=kind)
        for number, kind in enumerate(kinds)
    )
    config = PreTrainedConfig(architectures=["Gemma3TextModel"])
    return SimpleNamespace(model=model, model_config=SimpleNamespace(hf_config=config))


def test_layers_that_see_what_follows() -> None:
    """EmbeddingGemma's; a backend that reads prefixes would give other embeddings."""
    with pytest.raises(SystemExit) as refused:
        build_pools(
            configurator(AttentionType.DECODER, AttentionType.DECODER_BIDIRECTIONAL), sizes=None
        )
    line = str(refused.value)
    assert line.startswith("jenga-sglang: --memory-backend jenga: Gemma3TextModel has ")
    assert "tokens that follow" in line and "\n" not in line
