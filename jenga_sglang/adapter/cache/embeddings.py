"""SGLang's cache of image, video and audio embeddings, kept in the pool's own bytes.

SGLang computes an item's embedding when a prompt reaches it, and asks for it again for every chunk
that has a part of it, and for other prompts with the same item. Its own cache is 100 MB beside the
pool, used or not. Here a layer group is born with the first embedding, and gives way like anything
cached; what has been read to its end goes first. A server that sees no image keeps all its memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult, MultiModalStaticCache

from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.cut.geometry import LayerGroupSpec
from jenga_sglang.core.dependency import CrossAttention
from jenga_sglang.core.embeddings import Embeddings

logger = logging.getLogger(__name__)

GROUP_NAME = "embeddings"
MASK = (1 << 64) - 1


class PoolEmbeddings(MultiModalStaticCache):
    """Takes the place of `MultiModalStaticCache`, and is one of ``max_size_bytes`` for what rows of
    one width and dtype do not hold: results with more than a tensor, or of another shape. And for
    everything under ``--disable-radix-cache``, where the pool caches nothing."""

    def __init__(self, pool: JengaKVPool, max_size_bytes: int) -> None:
        super().__init__(max_size_bytes)
        self._pool = pool
        self._books: Embeddings | None = None
        self._is_refused = False
        # A model without attention layers has no place in the pool yet.
        self._layer_id = 1 + max(pool.place, default=pool.end_layer)
        # Tokens of every embedding that was ever stored and may still be there.
        self._tokens: dict[int, int] = {}

    # -- SGLang's interface -------------------------------------------------------------------

    def get(self, mm_hashes: list[int], combined_hash: int | None = None) -> Any:
        return self.get_single(self.combine_hashes(mm_hashes))

    def get_single(self, mm_hash: int | None) -> Any:
        """A copy of the embedding, (tokens, width), or what is kept beside the pool."""
        number = _number(mm_hash)
        pages = self._find(number)
        if pages is None:
            return super().get_single(mm_hash)
        rows = self._rows[pages].flatten(0, 1)[: self._tokens[number]]
        return EmbeddingResult(embedding=rows.flatten(1))

    def set(self, mm_hash: int | None, embedding: Any, loc: Any = None) -> bool:
        """Store an embedding; False where there is no room, and SGLang computes it again."""
        tensor = embedding.embedding
        if type(embedding) is not EmbeddingResult or not self._fits(tensor):
            return super().set(mm_hash, embedding, loc)
        number = _number(mm_hash)
        if self._find(number) is not None:
            return True
        virtual = self._kept_books.store(number, len(tensor))
        if virtual is None:
            return False
        # Evicted pages may have been elsewhere in the bytes that are written now.
        self._pool.poison_freed()
        self._forget_evicted()
        self._tokens[number] = len(tensor)
        places = torch.arange(len(tensor), device=self._rows.device)
        size = self._pool.page_size
        pages = self._small_pages(virtual)[places // size]
        self._rows[pages, places % size, 0] = tensor
        return True

    def free(self, mm_hash: int | None, mm_embedding_allocator: Any = None) -> bool:
        number = _number(mm_hash)
        tokens = self._tokens.pop(number, 0)
        if self._books is not None and tokens:
            return self._books.free(number, tokens)
        return bool(super().free(mm_hash, mm_embedding_allocator))

    def has(self, mm_hash: int | None) -> bool:
        return self._find(_number(mm_hash)) is not None or super().has(mm_hash)

    def clear(self) -> None:
        for number in list(self._tokens):
            self.free(number)
        super().clear()

    # -- the pool -----------------------------------------------------------------------------

    def has_been_read(self, mm_hash: int) -> None:
        """The prompt that asked for the embedding has got past it."""
        number = _number(mm_hash)
        if self._books is not None and number in self._tokens:
            self._books.has_been_read(number, self._tokens[number])

    def look_at_step(
        self, items: Sequence[Any], items_size: Sequence[int], stops: Sequence[int]
    ) -> None:
        """A step has computed prompts up to ``stops``; prompt i has ``items`` from
        ``items_size[i]`` to ``items_size[i + 1]``, at places that they know."""
        for i, stop in enumerate(stops[: len(items_size) - 1]):
            own = items[items_size[i] : items_size[i + 1]]
            read = [item for item in own if item.offsets[-1][1] < stop]
            for item in read:
                self.has_been_read(item.hash)
            if own and len(read) == len(own):
                self.has_been_read(self.combine_hashes([item.hash for item in own]) or 0)

    @property
    def _rows(self) -> torch.Tensor:
        """(small pages, page size, 1, width)"""
        return self._pool.k_pages[self._layer_id]

    def _find(self, number: int) -> torch.Tensor | None:
        if self._books is None or number not in self._tokens:
            return None
        virtual = self._books.find(number, self._tokens[number])
        return None if virtual is None else self._small_pages(virtual)

    @property
    def _kept_books(self) -> Embeddings:
        return present(self._books, "no embedding has made its group yet")

    def _small_pages(self, virtual: Any) -> torch.Tensor:
        small = self._pool.small_pages(self._kept_books.group, 0, virtual)
        return torch.from_numpy(small).to(self._pool.device, torch.int64)

    def _fits(self, tensor: torch.Tensor) -> bool:
        """Whether the group has rows like the tensor's; the first tensor says what they are."""
        if tensor.dim() != 2 or not len(tensor):
            return False
        if self._books is None and not self._open(tensor.shape[1], tensor.dtype):
            return False
        rows = self._rows
        return bool(rows.shape[-1] == tensor.shape[1] and rows.dtype == tensor.dtype)

    def _open(self, width: int, dtype: torch.dtype) -> bool:
        """Have the group born; False where rows so wide fit no large page."""
        manager = self._pool.manager
        if self._is_refused or self.max_size <= 0 or manager.memory.encoder_groups:
            return False
        if not manager.prefix_cache:
            return False
        row_bytes = width * dtype.itemsize
        spec = LayerGroupSpec(GROUP_NAME, (self._layer_id,), CrossAttention(), row_bytes, 0)
        try:
            number = self._pool.add_group(DiscoveredGroup(spec, 1, width, 0, dtype=dtype))
        except ValueError as error:
            logger.warning("Jenga keeps embeddings beside the pool: %s", error)
            self._is_refused = True
            return False
        self._books = Embeddings(manager, number)
        logger.info("Jenga keeps embeddings of %d %s in the pool", width, dtype)
        return True

    def _forget_evicted(self) -> None:
        """No more names than the pool has pages: the others are of embeddings that have gone."""
        if len(self._tokens) <= self._pool.manager.memory.num_virtual:
            return
        books = self._kept_books
        there = {n: t for n, t in self._tokens.items() if books.find(n, t) is not None}
        self._tokens = there


def _number(mm_hash: int | None) -> int:
    """The hash as a signed number of 64 bits."""
    value = (mm_hash or 0) & MASK
    return value - (1 << 64) if value >> 63 else value
