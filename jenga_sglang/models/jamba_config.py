"""Jamba's config with what SGLang asks of a hybrid model, and its place in SGLang's registry."""

from __future__ import annotations

from functools import cache
from typing import Any

from sglang.srt.configs.linear_attn_model_registry import (
    LinearAttnModelSpec,
    register_linear_attn_model,
)
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateShape
from sglang.srt.runtime_context import get_parallel
from transformers import AutoConfig
from transformers import JambaConfig as HuggingFaceJambaConfig

ARCHITECTURE = "JambaForCausalLM"
# SGLang's backend cuts the inputs of Mamba-2 into such chunks; Mamba-1 reads none of it.
CHUNK_TOKENS = 256


class JambaConfig(HuggingFaceJambaConfig):
    """Hugging Face's fields, and the shapes of Mamba-1 states for SGLang's pools."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mamba_chunk_size = CHUNK_TOKENS

    @property
    def inner_size(self) -> int:
        """Channels of a Mamba layer."""
        return int(self.mamba_expand * self.hidden_size)

    @property
    def full_attention_layer_ids(self) -> list[int]:
        kinds = enumerate(self.layers_block_type)
        return [layer for layer, kind in kinds if kind == "attention"]

    @property
    def linear_layer_ids(self) -> list[int]:
        kinds = enumerate(self.layers_block_type)
        return [layer for layer, kind in kinds if kind == "mamba"]

    @property
    def mamba2_cache_params(self) -> Mamba2CacheParams:
        shape = Mamba2StateShape.create_full_rank(
            tp_world_size=get_parallel().tp_size,
            intermediate_size=self.inner_size,
            state_size=self.mamba_d_state,
            conv_kernel=self.mamba_d_conv,
        )
        return Mamba2CacheParams(shape=shape, layers=self.linear_layer_ids)


@cache
def register() -> None:
    """Once: make SGLang read the config as `JambaConfig` and serve its states."""
    AutoConfig.register(JambaConfig.model_type, JambaConfig, exist_ok=True)
    register_linear_attn_model(
        LinearAttnModelSpec(
            config_class=JambaConfig,
            backend_class_name=(
                "sglang.srt.layers.attention.hybrid_linear_attn_backend.Mamba2AttnBackend"
            ),
            arch_names=[ARCHITECTURE],
        )
    )
