"""Layer groups, read off the built model: its `RadixAttention` modules say what they need.

No architecture is listed anywhere: layers with equal dependency, row shape and dtype are a group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow
from jenga_sglang.core.geometry import LayerGroupSpec


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores for a token on this rank, and what it depends on."""

    layer_id: int
    dependency: Dependency
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int

    @property
    def group_key(self) -> tuple[Dependency, int, int, int]:
        return (self.dependency, self.num_kv_heads, self.head_dim_k, self.head_dim_v)


@dataclass(frozen=True)
class DiscoveredGroup:
    """A layer group together with the row shape that its bytes stand for."""

    spec: LayerGroupSpec
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int


def attention_layers(model: torch.nn.Module) -> list[Any]:
    """The model's `RadixAttention` modules in order of construction."""
    from sglang.srt.layers.radix_attention import RadixAttention

    return [m for m in model.modules() if isinstance(m, RadixAttention)]


def apply_config_windows(layers: Iterable[Any], config: Any) -> None:
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
    layers: Iterable[Any], *, store_dtype: torch.dtype, max_length: int, chunk: int | None = None
) -> list[DiscoveredGroup]:
    """Group the model's attention layers; the group of the lowest layer id comes first.

    ``chunk`` is the model's attention chunk for layers that ask for it. Layers that reuse another
    layer's ``layer_id`` share its KV and count once. Raises ``ValueError`` when two layers share
    an id but not a shape, or when there is nothing to cache.
    """
    shapes: dict[int, LayerShape] = {}
    for layer in layers:
        shape = _shape(layer, max_length, chunk)
        known = shapes.setdefault(shape.layer_id, shape)
        if known != shape:
            raise ValueError(f"layer {shape.layer_id} is shared by {known} and {shape}")
    if not shapes:
        raise ValueError("the model has no attention layer that keeps KV")
    members: dict[tuple[Dependency, int, int, int], list[LayerShape]] = {}
    for layer_id in sorted(shapes):
        members.setdefault(shapes[layer_id].group_key, []).append(shapes[layer_id])
    return [_group(shapes_of_group, store_dtype) for shapes_of_group in members.values()]


def _shape(layer: Any, max_length: int, chunk: int | None) -> LayerShape:
    return LayerShape(
        layer.layer_id,
        _dependency(layer, chunk).effective(max_length),
        layer.tp_k_head_num,
        layer.qk_head_dim,
        layer.v_head_dim,
    )


def _dependency(layer: Any, chunk: int | None) -> Dependency:
    if layer.use_irope and chunk:
        return ChunkedLocal(chunk)
    # SGLang counts the tokens before the query; model configs and `SlidingWindow` count the
    # query too.
    window_left = layer.sliding_window_size
    if window_left is not None and window_left > -1:
        return SlidingWindow(window_left + 1)
    return Full()


def _group(shapes: list[LayerShape], store_dtype: torch.dtype) -> DiscoveredGroup:
    first = shapes[0]
    itemsize = store_dtype.itemsize
    spec = LayerGroupSpec(
        name=str(first.dependency),
        layers=tuple(s.layer_id for s in shapes),
        dependency=first.dependency,
        k_bytes=first.num_kv_heads * first.head_dim_k * itemsize,
        v_bytes=first.num_kv_heads * first.head_dim_v * itemsize,
    )
    return DiscoveredGroup(spec, first.num_kv_heads, first.head_dim_k, first.head_dim_v)
