"""Objects in SGLang's storage backends, whichever of their two interfaces a backend has.

Some take and give an object by value, others by its address in memory that they were told of
before. What they raise is raised here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheFile
from sglang.srt.mem_cache.storage.mmap import alloc_mmap

from jenga_sglang.core.ids import ceil_div

# Of files that are read past the system's cache: addresses and sizes are multiples of it.
ALIGNMENT = 4096
WRITTEN, READ = SLOTS = range(2)


class Objects(Protocol):
    """Objects of uint8 by key."""

    def exists(self, keys: Sequence[str]) -> int:
        """How many of ``keys`` there are, from the first on."""

    def write(self, key: str, content: torch.Tensor) -> bool: ...

    def read(self, key: str, num_bytes: int) -> Any:
        """The object, or None; good until the next one is read."""

    def discard(self, key: str) -> None:
        """Delete an object that is not what was written, where a backend can, and would take it for
        one that need not be written again."""

    def clear(self) -> Any: ...

    def close(self) -> None: ...


class Backend:
    """What both have in common, of a ``backend`` that may be wrapped in one of SGLang's tests."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    @property
    def _own(self) -> Any:
        return getattr(self._backend, "_backend", self._backend)

    def exists(self, keys: Sequence[str]) -> int:
        return int(self._backend.batch_exists(list(keys)))

    def clear(self) -> Any:
        return self._backend.clear()

    def close(self) -> None:
        if hasattr(self._own, "close"):
            self._own.close()


class ByValue(Backend):
    """Of a backend with `get` and `set`."""

    def write(self, key: str, content: torch.Tensor) -> bool:
        return bool(self._backend.set(key, content))

    def read(self, key: str, num_bytes: int) -> Any:
        return self._backend.get(key, torch.empty(num_bytes, dtype=torch.uint8))

    def discard(self, key: str) -> None:
        if isinstance(self._own, HiCacheFile):
            _remove_file(self._own, key)


class ByAddress(Backend):
    """Of a backend with `batch_get_v1` and `batch_set_v1`: an object passes through memory of this
    package's, ``most_bytes`` in each direction, for it goes with its seal."""

    def __init__(self, backend: Any, window: Window) -> None:
        super().__init__(backend)
        self._window = window
        backend.register_mem_pool_host(window)
        # Every rank stores what it has itself, under keys of its own.
        self._own.backup_skip = False

    def write(self, key: str, content: torch.Tensor) -> bool:
        self._window.open(WRITTEN, len(content))[: len(content)] = content
        (stored,) = self._backend.batch_set_v1([key], torch.tensor([WRITTEN]))
        return bool(stored)

    def read(self, key: str, num_bytes: int) -> Any:
        place = self._window.open(READ, num_bytes)
        # Nothing of the object before is left, whatever the backend does.
        place.zero_()
        (came,) = self._backend.batch_get_v1([key], torch.tensor([READ]))
        return place[:num_bytes] if came else None

    def discard(self, key: str) -> None:
        own = self._own
        if remove := getattr(getattr(own, "store", None), "remove", None):
            (tagged,) = own._tag_keys([key])
            # Whoever has read it just now has a lease on it.
            remove(f"{tagged}_{own.mla_suffix}_k", True)


class Window:
    """Memory for an object on its way down and one on its way up, as SGLang's backends see a host
    pool: one of pages of one token, each an object at an address."""

    layout = "page_first"
    page_size = 1
    pin_memory = False
    allocator = None

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = _aligned(most_bytes)
        self.kv_buffer = alloc_mmap((len(SLOTS), self._most_bytes), torch.uint8)
        self._sizes = [0] * len(SLOTS)

    def open(self, slot: int, num_bytes: int) -> torch.Tensor:
        """The bytes of the object that passes through ``slot`` next, uint8, with what aligns it."""
        self._sizes[slot] = _aligned(num_bytes)
        return self.kv_buffer[slot, : self._sizes[slot]]

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        slots = indices.tolist()
        begin = self.kv_buffer.data_ptr()
        return [begin + s * self._most_bytes for s in slots], [self._sizes[s] for s in slots]

    def get_ksize_per_token(self) -> int:
        return self._most_bytes

    def is_stride_page_aligned(self, page_size_bytes: int = ALIGNMENT) -> bool:
        begin = self.kv_buffer.data_ptr()
        return begin % page_size_bytes == 0 and self._most_bytes % page_size_bytes == 0


def _aligned(num_bytes: int) -> int:
    return ceil_div(num_bytes, ALIGNMENT) * ALIGNMENT


def _remove_file(backend: HiCacheFile, key: str) -> None:
    name = backend._get_suffixed_key(key)
    if backend.metadata_cache is not None:
        backend.metadata_cache.remove(name)
    backend._evictor.abort(name)
    path = os.path.join(backend.file_path, f"{name}.bin")
    if os.path.exists(path):
        os.remove(path)
