"""Recurrent layers' states in the pool, and the rows of requests that own them.

SGLang's linear-attention backends ask the request pool two things: which state a request owns, and
one layer's states as tensors. Here a state's index is its small page, and the tensors are strided
views of the one buffer.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.memory_pool import MambaPool, ReqToTokenPool

from flashinfer_ext.states import StateLayout, StatePart, state_view
from jenga_sglang.core.books.corrupt import agree, present
from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec
from jenga_sglang.core.cut.stages import StageGroup
from jenga_sglang.core.dependency import LastState
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.running import Running, StateCopy


@dataclass(frozen=True)
class DiscoveredStates:
    """The group of a model's recurrent layers: all keep the same parts, ``conv`` first."""

    spec: LayerGroupSpec
    conv: tuple[StatePart, ...]
    temporal: StatePart

    def layout(self, cut: GroupGeometry | StageGroup) -> StateLayout:
        parts = tuple(part for part in (*self.conv, self.temporal) if part.num_bytes)
        return StateLayout(cut.layers_per_stripe, parts, cut.small_page_bytes)


def discover_states(config: Any, own: Container[int]) -> DiscoveredStates | None:
    """The group of those recurrent layers that are among a stage's ``own``, as the model's SGLang
    config describes them for this rank."""
    params = config.mamba2_cache_params
    layers = tuple(layer for layer in sorted(params.layers) if layer in own)
    if not layers:
        return None
    conv = tuple(StatePart(tuple(shape), params.dtype.conv) for shape in params.shape.conv)
    temporal = StatePart(tuple(params.shape.temporal), params.dtype.temporal)
    spec = LayerGroupSpec(
        name="states",
        layers=layers,
        dependency=LastState(),
        state_bytes=tuple(p.num_bytes for p in (*conv, temporal) if p.num_bytes),
    )
    return DiscoveredStates(spec, conv, temporal)


class StateViews:
    """Every state of a group, by layer, in the pool's buffer on its device.

    A state's index is its small page in the layer's stripe; `layers` has per layer what SGLang's
    kernels take: ``conv`` tensors (pages, *shape) and ``temporal`` (pages, *shape).
    """

    def __init__(
        self, buffer: torch.Tensor, states: DiscoveredStates, cut: GroupGeometry | StageGroup
    ) -> None:
        layout = states.layout(cut)
        self.discovered = states
        self.group_layers = states.spec.layers
        self.num_stripes = cut.stripes
        self.layers: dict[int, MambaPool.State] = {}
        self.stripe: dict[int, int] = {}
        self._layer_bytes: dict[int, torch.Tensor] = {}
        pages = buffer.numel() // layout.small_page_bytes
        self._pages = buffer[: pages * layout.small_page_bytes].view(pages, -1)
        for index, layer_id in enumerate(states.spec.layers):
            stripe, layer = divmod(index, layout.num_layers)
            views = [state_view(buffer, layout, layer, p) for p in range(len(layout.parts))]
            conv = views[: len(states.conv)]
            # A short convolution has no temporal part: SGLang's shape of it has no elements.
            temporal = (
                views[-1]
                if states.temporal.num_bytes
                else buffer.new_empty((pages, *states.temporal.shape), dtype=states.temporal.dtype)
            )
            self.layers[layer_id] = MambaPool.State(conv=conv, temporal=temporal)
            self.stripe[layer_id] = stripe
            first = layout.offset_bytes(layer, 0)
            self._layer_bytes[layer_id] = self._pages[:, first : first + layout.layer_bytes]

    def copy_pages(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy whole small pages, all layers of a stripe at once; int64 indices on the device."""
        self._pages[target] = self._pages[source]

    def copies_of(self, layer_id: int, pages: torch.Tensor) -> MambaPool.State:
        """Copies of one layer's states in small pages (n,), as `layers` has them, numbered on."""
        kept = self.layers[layer_id]
        return MambaPool.State(conv=[c[pages] for c in kept.conv], temporal=kept.temporal[pages])

    def copy_layer(self, layer_id: int, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy one layer's states from small pages to others; int64 indices on the device."""
        rows = self._layer_bytes[layer_id]
        rows[target] = rows[source]

    @property
    def shapes(self) -> Any:
        """What backends read shapes off: `mamba_cache` of SGLang's pool, (layers, pages, *shape),
        without memory behind it."""
        first = self.layers[self.group_layers[0]]
        count = len(self.group_layers)

        def stacked(view: torch.Tensor) -> torch.Tensor:
            return torch.empty((count, *view.shape), dtype=view.dtype, device="meta")

        return MambaPool.State(
            conv=[stacked(c) for c in first.conv], temporal=stacked(first.temporal)
        )


class JengaReqToTokenPool(ReqToTokenPool):
    """SGLang's request rows, and the state that each row's request owns.

    Not a `HybridReqToTokenPool`: SGLang would hand out and clear state slots of its own.
    ``state_index`` are the small pages to answer with, set by the state backend for every batch;
    ``copied`` is what it has a layer run on in place of the states themselves.
    """

    def __init__(self, *, views: StateViews, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.views = views
        self.mamba_pool = SimpleNamespace(mamba_cache=views.shapes, enable_linear_replayssm=False)
        self.state_index: torch.Tensor | None = None
        self.copied: MambaPool.State | None = None

    def get_mamba_indices(self, req_indices: torch.Tensor) -> torch.Tensor:
        index = present(self.state_index, "the state backend has named no states of this batch")
        agree("states of the batch", len(index), len(req_indices))
        return index

    def translate_mamba_indices(self, mamba_indices: torch.Tensor) -> torch.Tensor:
        return mamba_indices

    def mamba2_layer_cache(self, layer_id: int) -> MambaPool.State:
        return self.copied or self.views.layers[layer_id]


def working_pages(all_running: list[Running], table: Ids) -> Ids:
    """Small pages of the working states, (stripes, requests)."""
    return table[[running.state_page for running in all_running]].T


def copy_pages(copies: list[StateCopy]) -> tuple[Ids, Ids]:
    """Source and target small pages, (stripes, copies) each."""
    source = np.array([c.source for c in copies], np.int64)
    target = np.array([c.target for c in copies], np.int64)
    return source.T, target.T
