"""Models that no Jenga pool can serve: each ends the start with one line that says why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.configs import InklingMMConfig, InklingModelConfig, ZayaConfig
from sglang.srt.configs.hybrid_arch import hybrid_lightning_config
from sglang.srt.configs.model_config import (
    is_deepseek_dsa,
    is_deepseek_v4,
    is_minimax_sparse,
    is_qwen4_exp,
)
from sglang.srt.layers.pooler import CrossEncodingPooler, Pooler
from sglang.srt.layers.sparse_pooler import SparsePooler
from sglang.srt.runtime_context import attention_backends, get_spec

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
# What any other such model meets in `attention.state_backend`, once its weights are loaded.
_RUNS_CONVOLUTIONS = (InklingMMConfig, InklingModelConfig, ZayaConfig)
_POOLERS = (Pooler, CrossEncodingPooler, SparsePooler)
# Classes that write latent rows into SGLang's pool themselves, past the attention backend.
_WRITES_POOL = frozenset(
    {"Dots3NoteForCausalLM", "Dots3NoteForCausalLMNextN", "SarvamMLAForCausalLM"}
)


def refuse_configs(model_config: Any) -> None:
    """Raise ``SystemExit`` with one line for a model whose config says that it cannot be served:
    before its weights are loaded."""
    for what, is_so in _REFUSED_CONFIGS:
        if is_so(model_config):
            raise refuse_model(model_config, what)


def refuse_built(model: torch.nn.Module, model_config: Any) -> None:
    """The same for a model whose class has been built, with weights or without."""
    refuse_configs(model_config)
    _refuse_without_pooler(model, model_config)
    for what, is_so in _REFUSED_CLASSES:
        if is_so(model, model_config):
            raise refuse_model(model_config, what)


def refuse_models(configurator: Any) -> None:
    """Raise ``SystemExit`` with one line for a loaded model or a KV dtype that cannot be served."""
    refuse_built(configurator.model, configurator.model_config)
    for what, is_so in _REFUSED:
        if is_so(configurator):
            raise refuse_model(configurator.model_config, what)
    if configurator.kv_cache_dtype not in KV_DTYPES:
        raise refuse(
            f"--kv-cache-dtype {configurator.kv_cache_dtype_str}",
            f"does not work with {flags.FLAG} jenga yet; use auto, bfloat16 or fp8_e5m2/e4m3",
        )


def refuse_model(model_config: Any, what: str) -> SystemExit:
    """The one line for a model that has ``what``."""
    return refuse(
        f"{flags.FLAG} jenga",
        f"{_names(model_config)} has {what}, which Jenga does not serve yet; leave the flag out to "
        "serve it from SGLang's own pools",
    )


def _names(model_config: Any) -> str:
    return ", ".join(model_config.hf_config.architectures or ["the model"])


def _refuse_without_pooler(model: torch.nn.Module, model_config: Any) -> None:
    """SGLang tells a model that it asks for an embedding, whether or not its class knows of any:
    the first request would end the server."""
    if getattr(model_config, "is_generation", True) or _pools(model):
        return
    raise refuse(
        "--is-embedding",
        f"SGLang's class of {_names(model_config)} makes no embeddings; leave the "
        "flag out, or serve a checkpoint of a class that makes them",
    )


def _pools(model: torch.nn.Module) -> bool:
    """Whether a model's class has something that makes an embedding, and takes the question."""
    parameters = inspect.signature(model.forward).parameters
    is_asked = "get_embedding" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    return is_asked and any(isinstance(part, _POOLERS) for part in model.modules())


def _writes_pool(model_config: Any) -> bool:
    return not _WRITES_POOL.isdisjoint(model_config.hf_config.architectures or ())


def _hides_images(model: torch.nn.Module, model_config: Any) -> bool:
    return hasattr(model, "_build_cross_attention_custom_mask")


def _sees_what_follows(model: torch.nn.Module, model_config: Any) -> bool:
    """Also an encoder served by the Transformers backend: its layers call themselves
    cross-attention, and there is no encoder whose output they would read."""
    layers = attention_layers(model)
    has_encoder = getattr(model_config, "is_encoder_decoder", False)
    return any(
        sees_what_follows(layer) or (layer.is_cross_attention and not has_encoder)
        for layer in layers
    )


def _drafts(configurator: Any) -> bool:
    return not configurator.spec_algorithm.is_none()


def _drafts_with_states(configurator: Any) -> bool:
    return draft_layers.has_recurrent_layers()


def _drafts_with_several_heads(configurator: Any) -> bool:
    """SGLang turns the flag on by itself for some models, after flags have been checked."""
    return _drafts(configurator) and bool(get_spec().enable_multi_layer_eagle)


def _drafts_beside_encoder(configurator: Any) -> bool:
    has_encoder = getattr(configurator.model_config, "is_encoder_decoder", False)
    return bool(has_encoder) and _drafts(configurator)


def _drafts_of_other_latent_rows(configurator: Any) -> bool:
    return draft_layers.has_latent_rows_beside(configurator)


def _reads_target_through_kernels(configurator: Any) -> bool:
    """SGLang takes EAGLE for it where the draft is an assistant, after flags have been checked."""
    if not configurator.spec_algorithm.is_frozen_kv_mtp():
        return False
    return flags.TORCH_BACKEND not in attention_backends()


def _is_sized_otherwise(configurator: Any) -> bool:
    """Two pools whose bytes are not those of two lists of layers: there is nothing to be equal to,
    and what else such a class keeps is not known."""
    layers = configurator.layer_info
    ids = (layers.full_attention_layer_ids, layers.swa_attention_layer_ids)
    return bool(configurator.is_hybrid_swa) and None in ids


# What a model has, and whether it does; what its config says comes first. The first that holds is
# what the user reads.
_REFUSED_CONFIGS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("sparse latent attention (DSA)", lambda c: is_deepseek_dsa(c.hf_config)),
    ("lightning attention", lambda c: hybrid_lightning_config(c) is not None),
    (
        "several convolutions a layer, which it runs itself",
        lambda c: isinstance(c.hf_config, _RUNS_CONVOLUTIONS),
    ),
    ("compressed tokens beside its windows", lambda c: is_deepseek_v4(c.hf_config)),
    ("sparse attention with an index of keys", lambda c: is_minimax_sparse(c.hf_config)),
    ("n-grams and windows of embeddings in its request rows", lambda c: is_qwen4_exp(c.hf_config)),
    ("layers that write to SGLang's pool themselves", _writes_pool),
)
_REFUSED_CLASSES: tuple[tuple[str, Callable[[torch.nn.Module, Any], bool]], ...] = (
    ("cross-attention that shows a token some of the images only", _hides_images),
    ("attention to tokens that follow", _sees_what_follows),
)
_REFUSED: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("pools of SGLang's that are not sized by layers", _is_sized_otherwise),
    ("a draft model with recurrent layers", _drafts_with_states),
    (
        "heads that draft one after the other (--enable-multi-layer-eagle)",
        _drafts_with_several_heads,
    ),
    ("an encoder, and drafts (--speculative-algorithm)", _drafts_beside_encoder),
    (
        "a draft model that reads what its target keeps (FROZEN_KV_MTP), which "
        f"--attention-backend {flags.TORCH_BACKEND} alone does yet",
        _reads_target_through_kernels,
    ),
    ("a draft model with latent attention of other rows", _drafts_of_other_latent_rows),
)
