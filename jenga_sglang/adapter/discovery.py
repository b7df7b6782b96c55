"""Layer groups, read off the built model: its `RadixAttention` modules say what they need.

No architecture is listed anywhere: layers with equal dependency, row shape and dtype are a group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from jenga_sglang.adapter.sglang_views import LayerView
from jenga_sglang.core.cut.geometry import LayerGroupSpec, told_apart
from jenga_sglang.core.dependency import (
    ChunkedLocal,
    CrossAttention,
    Dependency,
    Full,
    SlidingWindow,
)
from jenga_sglang.layer_flags import AS_THE_REST, AS_TRAINED, Keep, KvDtypes

_TORCH_NAMES = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores for a token on this rank, and what it depends on.

    A latent row (MLA) is stored once, as K, and ``head_dim_v`` is 0: V are the first
    ``latent_dim`` elements of K.
    """

    layer_id: int
    dependency: Dependency
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    latent_dim: int
    dtype: torch.dtype

    @property
    def group_key(self) -> tuple[Any, ...]:
        dims = (self.num_kv_heads, self.head_dim_k, self.head_dim_v, self.latent_dim)
        return (self.dependency, *dims, self.dtype)


@dataclass(frozen=True)
class DiscoveredGroup:
    """A layer group together with the row shape that its bytes stand for, as in `LayerShape`.

    ``dtype`` is that of its rows; None for the pool's own.
    """

    spec: LayerGroupSpec
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    latent_dim: int = 0
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class LatentRow:
    """The latent row of a model (MLA): its compressed part, and what rotates, in elements."""

    rank: int
    rope_dim: int

    def is_kept_by(self, layer: LayerView) -> bool:
        """Whether ``layer`` attends over latent rows."""
        dims = (layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim)
        return bool(dims == (1, self.rank + self.rope_dim, self.rank))


def latent_row(owner: Any) -> LatentRow | None:
    """The row of a model with latent attention (MLA); None for all others. ``owner`` is SGLang's
    runner of it, or the configurator of its pools."""
    if not owner.use_mla_backend:
        return None
    config = owner.model_config
    return LatentRow(config.kv_lora_rank, config.qk_rope_head_dim)


def attention_layers(model: torch.nn.Module) -> list[Any]:
    """The model's `RadixAttention` modules that keep KV, in order of construction.

    SGLang's Transformers backend keeps them by layer in a dict, which torch does not look into.
    """
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

    found = []
    for module in model.modules():
        held = getattr(module, "attention_instances", None) or {}
        found += [m for m in (module, *held.values()) if isinstance(m, RadixAttention)]
    return [m for m in found if m.attn_type != AttentionType.ENCODER_ONLY]


def sees_what_follows(layer: LayerView) -> bool:
    """Whether a prompt's tokens read later ones in ``layer``: what they keep is no prefix's."""
    from sglang.srt.layers.radix_attention import AttentionType

    return bool(layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL)


def apply_config_windows(layers: Iterable[LayerView], config: Any) -> None:
    """Give layers without a window the one that the Hugging Face text ``config`` declares for them.

    Every attention backend reads a layer's window off the layer.
    """
    for layer in layers:
        window = config_window(config, layer.layer_id)
        if window and layer.sliding_window_size == -1 and not layer.is_cross_attention:
            layer.sliding_window_size = window - 1


def config_window(config: Any, layer_id: int) -> int | None:
    """The window, in tokens, that Hugging Face applies in a layer; None for none."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer_id] != "sliding_attention":
        return None
    return int(window)


def discover_groups(
    layers: Iterable[LayerView],
    *,
    store_dtype: torch.dtype,
    max_length: int,
    chunk: int | None = None,
    latent: LatentRow | None = None,
    kv_dtypes: KvDtypes = AS_THE_REST,
    keep: Keep = AS_TRAINED,
) -> list[DiscoveredGroup]:
    """Group the model's attention layers; the group of the lowest layer id comes first.

    ``chunk`` is the model's attention chunk for layers that ask for it, ``latent`` the row of a
    model with latent attention. Layers that reuse another layer's ``layer_id`` share its KV and
    count once. Rows are of ``store_dtype`` where ``kv_dtypes`` says nothing else.

    Raises ``ValueError`` when two layers share an id but not a shape, and ``SystemExit`` with one
    line for what ``kv_dtypes`` and ``keep`` ask of layers that are not there.
    """
    stored = storing_layers(layers, latent)
    needs = {x.layer_id: _dependency(x, chunk).effective(max_length) for x in stored}
    keep.check(needs)
    needs = {layer: keep.of(layer, need).effective(max_length) for layer, need in needs.items()}
    kv_dtypes.check(needs.values())
    shapes: dict[int, LayerShape] = {}
    for layer in stored:
        need = needs[layer.layer_id]
        shape = _shape(layer, need, latent, torch_dtype(kv_dtypes.of(need)) or store_dtype)
        known = shapes.setdefault(shape.layer_id, shape)
        if known != shape:
            raise ValueError(f"layer {shape.layer_id} is shared by {known} and {shape}")
    members: dict[tuple[Any, ...], list[LayerShape]] = {}
    for layer_id in sorted(shapes):
        members.setdefault(shapes[layer_id].group_key, []).append(shapes[layer_id])
    order = [layer.layer_id for layer in stored]
    groups = [_group(of_group, store_dtype, order) for of_group in members.values()]
    specs = told_apart(group.spec for group in groups)
    return [replace(group, spec=spec) for group, spec in zip(groups, specs, strict=True)]


def storing_layers(layers: Iterable[LayerView], latent: LatentRow | None) -> list[LayerView]:
    """``layers`` without those that keep nothing: a model with latent attention may have a second
    module with a layer's id, for prefills that attend over what a row expands to."""
    layers = list(layers)
    if latent is None:
        return layers
    kept = {layer.layer_id for layer in layers if latent.is_kept_by(layer)}
    return [x for x in layers if latent.is_kept_by(x) or x.layer_id not in kept]


def _shape(
    layer: LayerView, dependency: Dependency, latent: LatentRow | None, dtype: torch.dtype
) -> LayerShape:
    is_latent = latent is not None and latent.is_kept_by(layer)
    return LayerShape(
        layer.layer_id,
        dependency,
        layer.tp_k_head_num,
        layer.qk_head_dim,
        0 if is_latent else layer.v_head_dim,
        layer.v_head_dim if is_latent else 0,
        dtype,
    )


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The dtype that a user calls ``name``; see `layer_flags.KV_DTYPES`."""
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, _TORCH_NAMES.get(name, name))
    return dtype


def _dependency(layer: LayerView, chunk: int | None) -> Dependency:
    if layer.is_cross_attention:
        return CrossAttention()
    if layer.use_irope and chunk:
        return ChunkedLocal(chunk)
    # SGLang counts the tokens before the query; model configs and `SlidingWindow` count the
    # query too.
    window_left = layer.sliding_window_size
    if window_left is not None and window_left > -1:
        return SlidingWindow(window_left + 1)
    return Full()


def _is_read_late(layers: Collection[int], order: Sequence[int]) -> bool:
    """Whether one of ``layers`` is read again, by a layer that shares its rows, when another of
    them has been computed since."""
    ran = [layer for layer in order if layer in layers]
    return any(layer in ran[:i] and ran[i - 1] != layer for i, layer in enumerate(ran))


def _group(
    shapes: list[LayerShape], store_dtype: torch.dtype, order: Sequence[int]
) -> DiscoveredGroup:
    """The group of layers with these ``shapes``; ``order`` are the ids of all in which they run."""
    first = shapes[0]
    itemsize = first.dtype.itemsize
    other = "" if first.dtype == store_dtype else f" {str(first.dtype).removeprefix('torch.')}"
    spec = LayerGroupSpec(
        name=f"{first.dependency}{other}",
        layers=tuple(s.layer_id for s in shapes),
        dependency=first.dependency,
        k_bytes=first.num_kv_heads * first.head_dim_k * itemsize,
        v_bytes=first.num_kv_heads * first.head_dim_v * itemsize,
        is_read_late=_is_read_late({s.layer_id for s in shapes}, order),
    )
    dims = (first.num_kv_heads, first.head_dim_k, first.head_dim_v, first.latent_dim)
    return DiscoveredGroup(spec, *dims, dtype=first.dtype)
