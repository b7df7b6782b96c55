"""The pool: one uint8 tensor, read per layer through strided views."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.mem_cache.memory_pool import KVCache

from flashinfer_ext.layout import GroupLayout
from flashinfer_ext.views import page_views
from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.states import DiscoveredStates, StateViews
from jenga_sglang.adapter.transfer import Components
from jenga_sglang.adapter.whole_images import WholeImages
from jenga_sglang.core.books.corrupt import CorruptPool
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry
from jenga_sglang.core.cut.stages import StageCut, StageGroup
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.live_groups import fitting_cut, register_group, retire_group
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running

logger = logging.getLogger(__name__)

GiB = 1 << 30


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer's KV lies: its group, the stripe of the group, the layer within the stripe."""

    group: int
    stripe: int
    layer: int


class JengaKVPool(KVCache):
    """All layer groups in one buffer on ``device``; page tables stay with the `Manager`.

    ``k_pages[layer_id]`` and ``v_pages[layer_id]`` have shape (small pages, page_size, kv heads,
    head dim) and their group's dtype; of latent rows (MLA) V is a view of the first part of K. A
    group's page table says which small page holds which tokens.
    """

    def __init__(
        self,
        manager: Manager,
        groups: Sequence[DiscoveredGroup | None],
        states: DiscoveredStates | None = None,
        *,
        cut: Geometry | StageCut | None = None,
        dtype: torch.dtype,
        device: str,
        enable_memory_saver: bool,
        poison_freed: bool = False,
        draft_layers: Collection[int] = (),
    ) -> None:
        self.manager = manager
        # A stage of a pipeline has bytes of its own under shared books.
        self._stage_cut = cut if isinstance(cut, StageCut) else None
        held = self.cut
        specs = [of_group.spec for of_group in held.groups if of_group]
        rows = [spec for spec in specs if not spec.is_state] or specs
        layer_ids = sorted(layer for spec in rows for layer in spec.layers)
        super().__init__(
            size=manager.memory.num_virtual * held.page_size,
            page_size=held.page_size,
            dtype=dtype,
            layer_num=len(layer_ids),
            device=device,
            enable_memory_saver=enable_memory_saver,
            start_layer=layer_ids[0],
            end_layer=layer_ids[-1],
        )
        # Groups of rows and their layouts by number; groups may come and go.
        self.groups: dict[int, DiscoveredGroup] = {}
        self.layouts: dict[int, GroupLayout] = {}
        with self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE):
            self.buffer = torch.zeros(held.pool_bytes, dtype=torch.uint8, device=device)
        # Ids of layers of a draft model, which are in the groups as all others are.
        self.draft_layers = frozenset(draft_layers)
        # Attention backends that verify chains of drafts alone say so.
        self.drafts_are_chains = False
        # SGLang's rows of virtual tokens, whose row 0 is that of requests that pad a batch.
        self.req_to_token: torch.Tensor | None = None
        # How the model sees images, where it is not as text and the attention backend can do it:
        # the backend says so.
        self.whole_images: WholeImages | None = None
        # The pages of the request in each req_to_token row; the prefix cache keeps it.
        self.running_of_row: dict[int, Running] = {}
        # The numbers of storage below the pool's host memory; the prefix cache keeps it.
        self.storage_stats: Callable[[], dict[str, Any] | None] = lambda: None
        self.place: dict[int, LayerPlace] = {}
        self.k_pages: dict[int, torch.Tensor] = {}
        self.v_pages: dict[int, torch.Tensor] = {}
        num_rows = len(groups)
        for g, group in enumerate(groups):
            if group is not None:
                self._place(g, group, self._cut_of(g))
        # Recurrent states come after the groups of rows that a pool begins with.
        self.state_group = num_rows if states else None
        self.states = StateViews(self.buffer, states, self._cut_of(num_rows)) if states else None
        self.mem_usage = held.pool_bytes / GiB
        self._poison_freed = poison_freed
        if poison_freed:
            manager.memory.journal.record_freed()

    def _cut_of(self, group: int) -> GroupGeometry | StageGroup:
        if (cut := self.cut.groups[group]) is None:
            raise CorruptPool(f"group {group} has layers here and no bytes")
        return cut

    @property
    def cut(self) -> Geometry | StageCut:
        """How this process's bytes are cut."""
        return self._stage_cut or self.manager.geometry

    def add_group(self, group: DiscoveredGroup) -> int:
        """Make room in the live pool for one more group of rows; returns its number.

        Its layers' pages are views of the same buffer. No byte is moved, and no page is taken
        until a request that begins later needs one. Attention backends that keep page tables on
        the device know the groups they were built with only; the torch backend reads any.

        Raises ``ValueError`` and changes nothing for layer ids that the pool has already and for
        rows that no cut fits into the pool's large page.
        """
        if self._stage_cut is not None:
            raise ValueError(f"group {group.spec.name}: stages of a pipeline get no more groups")
        if known := sorted(self.place.keys() & set(group.spec.layers)):
            raise ValueError(f"group {group.spec.name}: the pool has layers {known} already")
        cut = fitting_cut(self.manager.geometry, group.spec)
        number = register_group(self.manager, cut)
        self._place(number, group, cut)
        return number

    def retire_group(self, number: int) -> None:
        """Forget a group of rows; its pages return to the common pool, and its views end.

        Raises ``ValueError`` and changes nothing where `core.live_groups.retire_group` does.
        """
        retire_group(self.manager, number)
        for layer_id in self.groups.pop(number).spec.layers:
            for book in (self.place, self.k_pages, self.v_pages):
                del book[layer_id]
        del self.layouts[number]

    def _place(self, number: int, group: DiscoveredGroup, cut: GroupGeometry | StageGroup) -> None:
        """Take note of a group that the manager knows, and view its layers' pages."""
        layout = GroupLayout(
            num_layers=cut.layers_per_stripe,
            page_size_tokens=cut.page_size,
            num_kv_heads=group.num_kv_heads,
            head_dim_k=group.head_dim_k,
            head_dim_v=group.head_dim_v,
            dtype=group.dtype or self.dtype,
            small_page_bytes=cut.small_page_bytes,
        )
        self.groups[number], self.layouts[number] = group, layout
        for index, layer_id in enumerate(group.spec.layers):
            stripe, layer = divmod(index, layout.num_layers)
            self.place[layer_id] = LayerPlace(number, stripe, layer)
            k, v = page_views(self.buffer, layout, layer)
            self.k_pages[layer_id] = k
            self.v_pages[layer_id] = k[..., : group.latent_dim] if group.latent_dim else v

    def small_pages(self, group: int, stripe: int, virtual: Ids) -> Ids:
        """The small pages of one stripe that hold these virtual pages; 0 where there is none."""
        small: Ids = self.manager.memory.table[group][virtual, stripe]
        return small

    def write(
        self, layer_id: int, pages: torch.Tensor, slots: torch.Tensor, k: Any, v: Any
    ) -> None:
        """Store K and V rows, one per entry of ``pages`` (small pages) and ``slots``, both int64.

        k and v: (tokens, kv heads, head dim), any float dtype; of a latent row k is all.
        """
        number = self.place[layer_id].group
        dtype = self.layouts[number].dtype
        self.k_pages[layer_id][pages, slots] = k.to(dtype)
        if not self.groups[number].latent_dim:
            self.v_pages[layer_id][pages, slots] = v.to(dtype)

    def move_kv_cache(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        """Copy rows of accepted drafts to where their tokens belong, in every layer.

        Both (tokens,) int64 virtual token ids, padded with 0. All are read before any is written.
        """
        if self.drafts_are_chains:
            return  # what is accepted of a chain is where it belongs: no look, no wait
        to, source = tgt_loc.cpu().numpy(), src_loc.cpu().numpy()
        moved = to != source
        if not moved.any():
            return
        to, source = to[moved], source[moved]
        for layer_id, place in self.place.items():
            there, here = (self._rows_of(place, token_ids) for token_ids in (to, source))
            self.k_pages[layer_id][there] = self.k_pages[layer_id][here]
            if not self.groups[place.group].latent_dim:
                self.v_pages[layer_id][there] = self.v_pages[layer_id][here]

    def _rows_of(self, place: LayerPlace, token_ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        """Small pages and slots of virtual tokens in the group of a layer, both int64."""
        virtual, slots = np.divmod(token_ids, self.page_size)
        pages = self.small_pages(place.group, place.stripe, virtual)
        return torch.from_numpy(pages).to(self.device), torch.from_numpy(slots).to(self.device)

    def zero_null_pages(self) -> None:
        """Make small page 0 of every group, and the row that names it, read as zeros again: memory
        that a memory saver has given back and taken again does not keep them."""
        self.buffer[: self.cut.large_page_bytes].zero_()
        if self.req_to_token is not None:
            self.req_to_token[0].zero_()

    def poison_freed(self) -> None:
        """Debug: fill pages freed since the last call with NaN, before anything reuses them."""
        if not self._poison_freed:
            return
        for group, small in self.manager.memory.journal.take_freed():
            if (cut := self.cut.groups[group]) is None:
                continue
            size = cut.small_page_bytes
            pages = torch.from_numpy(small.astype(np.int64)).to(self.device)
            flat = self.buffer[: len(self.buffer) // size * size]
            flat.view(-1, size)[pages] = 0xFF  # NaN in every float format

    # -- between servers ----------------------------------------------------------------------

    @cached_property
    def components(self) -> Components:
        """What another server may send of or receive from this pool."""
        return Components(self)

    def get_contiguous_buf_infos(self) -> tuple[list[int], list[int], list[int]]:
        """Pointers, lengths and item lengths, in bytes, of what is sent as a prompt is computed."""
        return self.components.buffers(self.components.kv_group)

    @property
    def head_num(self) -> int:
        """KV heads of the first group, which SGLang wants to know to divide what it never divides
        here: both servers have the same tensor parallelism."""
        return next((group.num_kv_heads for group in self.groups.values()), 1)

    # -- SGLang's interface -------------------------------------------------------------------

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.k_pages[layer_id]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.v_pages[layer_id]

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.k_pages[layer_id], self.v_pages[layer_id]

    def set_kv_buffer(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "a Jenga pool is written and read through the attention backend, which knows the page "
            "tables"
        )

    set_mla_kv_buffer = get_mla_kv_buffer = set_kv_buffer

    def get_kv_size_bytes(self) -> tuple[int, int]:
        specs = [group.spec for group in self.groups.values()]
        k_bytes = sum(len(spec.layers) * spec.k_bytes for spec in specs)
        v_bytes = sum(len(spec.layers) * spec.v_bytes for spec in specs)
        total = self.cut.pool_bytes
        # A pool of states only counts as K.
        k_share = total * k_bytes // (k_bytes + v_bytes) if specs else total
        return k_share, total - k_share
