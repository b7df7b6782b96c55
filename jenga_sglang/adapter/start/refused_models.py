"""Models that no Jenga pool can serve: each ends the start with one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.configs.hybrid_arch import hybrid_lightning_config
from sglang.srt.configs.model_config import (
    is_deepseek_dsa,
    is_deepseek_v4,
    is_minimax_sparse,
    is_qwen4_exp,
)

from jenga_sglang import flags
from jenga_sglang.adapter.discovery import attention_layers, sees_what_follows
from jenga_sglang.adapter.start import draft_layers
from jenga_sglang.refusal import refuse

KV_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
# Classes that write latent rows into SGLang's pool themselves, past the attention backend.
_WRITES_POOL = frozenset(
    {"Dots3NoteForCausalLM", "Dots3NoteForCausalLMNextN", "SarvamMLAForCausalLM"}
)


def refuse_models(configurator: Any) -> None:
    """Raise ``SystemExit`` with one line for a model or a KV dtype that cannot be served."""
    for what, is_so in _REFUSED:
        if is_so(configurator):
            raise refuse_model(configurator, what)
    if configurator.kv_cache_dtype not in KV_DTYPES:
        raise refuse(
            f"--kv-cache-dtype {configurator.kv_cache_dtype_str}",
            f"does not work with {flags.FLAG} jenga yet; use auto, bfloat16 or fp8_e5m2/e4m3",
        )


def refuse_model(configurator: Any, what: str) -> SystemExit:
    """The one line for a model that has ``what``."""
    names = ", ".join(configurator.model_config.hf_config.architectures or ["the model"])
    return refuse(
        f"{flags.FLAG} jenga",
        f"{names} has {what}, which Jenga does not serve yet; leave the flag out to serve it from "
        "SGLang's own pools",
    )


def _config(configurator: Any) -> Any:
    return configurator.model_config.hf_config


def _writes_pool(configurator: Any) -> bool:
    return not _WRITES_POOL.isdisjoint(_config(configurator).architectures or ())


def _hides_images(configurator: Any) -> bool:
    return hasattr(configurator.model, "_build_cross_attention_custom_mask")


def _sees_what_follows(configurator: Any) -> bool:
    """Also an encoder served by the Transformers backend: its layers call themselves
    cross-attention, and there is no encoder whose output they would read."""
    layers = attention_layers(configurator.model)
    has_encoder = getattr(configurator.model_config, "is_encoder_decoder", False)
    return any(
        sees_what_follows(layer) or (layer.is_cross_attention and not has_encoder)
        for layer in layers
    )


def _drafts(configurator: Any) -> bool:
    return not configurator.spec_algorithm.is_none()


def _rolls_back_states(configurator: Any) -> bool:
    has_states = configurator.mambaish_config is not None if _drafts(configurator) else False
    return has_states or draft_layers.has_recurrent_layers()


def _drafts_beside_encoder(configurator: Any) -> bool:
    has_encoder = getattr(configurator.model_config, "is_encoder_decoder", False)
    return bool(has_encoder) and _drafts(configurator)


def _drafts_beside_latent_rows(configurator: Any) -> bool:
    return draft_layers.has_draft_model() and (
        bool(configurator.use_mla_backend) or draft_layers.has_latent_rows()
    )


def _is_sized_otherwise(configurator: Any) -> bool:
    """Two pools whose bytes are not those of two lists of layers: there is nothing to be equal to,
    and what else such a class keeps is not known."""
    layers = configurator.layer_info
    ids = (layers.full_attention_layer_ids, layers.swa_attention_layer_ids)
    return bool(configurator.is_hybrid_swa) and None in ids


# What a model has, and whether it does. The first that holds is what the user reads.
_REFUSED: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("sparse latent attention (DSA)", lambda c: is_deepseek_dsa(_config(c))),
    ("lightning attention", lambda c: hybrid_lightning_config(c.model_config) is not None),
    ("compressed tokens beside its windows", lambda c: is_deepseek_v4(_config(c))),
    ("sparse attention with an index of keys", lambda c: is_minimax_sparse(_config(c))),
    (
        "n-grams and windows of embeddings in its request rows",
        lambda c: is_qwen4_exp(_config(c)),
    ),
    ("layers that write to SGLang's pool themselves", _writes_pool),
    ("cross-attention that shows a token some of the images only", _hides_images),
    ("attention to tokens that follow", _sees_what_follows),
    ("pools of SGLang's that are not sized by layers", _is_sized_otherwise),
    ("recurrent layers, and drafts (--speculative-algorithm)", _rolls_back_states),
    ("an encoder, and drafts (--speculative-algorithm)", _drafts_beside_encoder),
    ("latent attention, and a draft model", _drafts_beside_latent_rows),
)
