"""What one server sends another of a request's pages: components of one registered buffer.

SGLang's transfer engines know *components*: a buffer, an item's bytes, and for every request a
vector of item numbers on either side, matched by position. Every layer group is one, all over the
same buffer, an item being a small page; the pages of a group's stripes follow each other. A group
that keeps everything is SGLang's "KV" and is sent chunk by chunk while the prompt is computed;
the others are sent with the last chunk, when it is known what of them is still needed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from jenga_sglang.core.arrival import sent_small_pages, small_pages
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running

if TYPE_CHECKING:
    from jenga_sglang.adapter.kv_pool import JengaKVPool

Vector = NDArray[np.int32]
DIGEST_DIGITS = 12


class Components:
    """The components of a pool, in the order in which both servers name them."""

    def __init__(self, pool: JengaKVPool) -> None:
        manager: Manager = pool.manager
        self.manager = manager
        self.buffer = pool.buffer
        lasting = [g for g in manager.memory.row_groups if manager.needs.keeps_everything(g)]
        # Chunk by chunk; None where every group forgets.
        self.kv_group = lasting[0] if lasting else None
        self.others = [g for g in manager.needs.groups if g != self.kv_group]

    @property
    def kv_stripes(self) -> int:
        """Items that a page of tokens is in SGLang's "KV"."""
        return 1 if self.kv_group is None else self.manager.memory.stripes[self.kv_group]

    def item_bytes(self, group: int) -> int:
        return self.manager.geometry.groups[group].small_page_bytes

    def buffers(self, group: int | None) -> tuple[list[int], list[int], list[int]]:
        """Pointers, lengths and item lengths, in bytes, of a group's component; of none, none."""
        if group is None:
            return [], [], []
        return [self.buffer.data_ptr()], [self.buffer.numel()], [self.item_bytes(group)]

    def kv_vector(self, virtual: NDArray[Any]) -> Vector:
        """Items of "KV" of these virtual pages; the pages themselves, to be counted, where there
        is no such component."""
        if self.kv_group is None:
            return virtual.astype(np.int32)
        return small_pages(self.manager, self.kv_group, virtual).astype(np.int32)

    def other_vectors(self, running: Running, prefix_tokens: int, length: int) -> list[Vector]:
        """Items of every other component of a prompt of ``length`` tokens, of which the receiver
        has ``prefix_tokens``."""
        prefix_pages = prefix_tokens // self.manager.page_size
        return [
            sent_small_pages(self.manager, running, g, prefix_pages, length).astype(np.int32)
            for g in self.others
        ]

    def sent_bytes(self, kv_items: int, others: list[Vector]) -> int:
        """Bytes of so many items of "KV" and of these vectors."""
        total = 0 if self.kv_group is None else kv_items * self.item_bytes(self.kv_group)
        return total + sum(
            len(items) * self.item_bytes(g) for g, items in zip(self.others, others, strict=True)
        )

    # -- a request that waits on the host -----------------------------------------------------

    def save(self, running: Running, length: int) -> list[torch.Tensor]:
        """Host copies of what a history of ``length`` tokens needs, one tensor a group."""
        return [
            self._items(g)[self._index(running, g, length)].cpu() for g in self.manager.needs.groups
        ]

    def load(self, saved: list[torch.Tensor], running: Running, length: int) -> None:
        """Put what `save` has made into the pages of a request that has arrived with them."""
        for g, items in enumerate(saved):
            self._items(g)[self._index(running, g, length)] = items.to(self.buffer.device)

    def _items(self, group: int) -> torch.Tensor:
        size = self.item_bytes(group)
        return self.buffer[: self.buffer.numel() // size * size].view(-1, size)

    def _index(self, running: Running, group: int, length: int) -> torch.Tensor:
        small = sent_small_pages(self.manager, running, group, 0, length)
        return torch.from_numpy(small).to(self.buffer.device)


def layout_name(manager: Manager, attn_tp_size: int) -> str:
    """What two servers must have in common, in words that say where they differ, and a digest of
    all of it: dependencies, layers, rows, stripes and small pages. Sizes of pools may differ."""
    geometry = manager.geometry
    shown = [f"attention TP {attn_tp_size}, pages of {geometry.page_size} tokens"]
    everything: list[object] = [attn_tp_size, geometry.page_size]
    for cut, dependency in zip(geometry.groups, manager.dependencies, strict=True):
        layers = len(cut.spec.layers)
        shown.append(f"{dependency}: {layers} layers, {cut.stripes} x {cut.small_page_bytes} bytes")
        everything.append((cut.spec, dependency, cut.stripes, cut.small_page_bytes))
    digest = hashlib.sha256(repr(everything).encode()).hexdigest()[:DIGEST_DIGITS]
    return f"jenga {digest} ({'; '.join(shown)})"
