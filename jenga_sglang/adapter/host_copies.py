"""Who copies pages between the pool and host memory: the host, or a GPU on a stream.

Copies are made in the order in which they are asked for. On a GPU they lie on the stream of the
forward passes, behind the step that has been launched and before the next one: so a page is copied
when its last writer has ended, and nobody writes to it before. The host goes on meanwhile; what it
reads or writes itself of host memory comes after `HostCopies.wait`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from jenga_sglang.adapter.streams import HostWork, StreamWork
from jenga_sglang.core.ids import Ids

# One warp copies one piece of a page after the other, and reads over PCIe take microseconds: pieces
# are small and blocks many. No step runs meanwhile. SGLang's two blocks are for copies beside one.
PIECE_BYTES = 4096
BLOCKS = 32


class HostCopies(HostWork):
    """Of a pool that is in host memory itself: every copy is made when its call returns."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Host memory, (bytes,) uint8, all zero."""
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def in_order(self) -> AbstractContextManager[Any]:
        """What is copied, or done to the pool, inside comes behind all before and before all after
        it."""
        return nullcontext()

    def copy(self, source: torch.Tensor, pages: Ids, target: torch.Tensor, places: Ids) -> None:
        """Copy ``pages`` of ``source`` to ``places`` in ``target``, both (pages, bytes) uint8."""
        target[torch.from_numpy(places)] = source[torch.from_numpy(pages)]

    def wait(self) -> None:
        """Return when every copy is made that was asked for."""


class StreamCopies(StreamWork, HostCopies):
    """Of a pool on a GPU, by SGLang's kernel, which reads and writes registered host memory."""

    def __init__(self, device: torch.device, stream: Any) -> None:
        from sgl_kernel.kvcacheio import transfer_kv_per_layer_mla

        super().__init__(device, stream)
        self._copy = transfer_kv_per_layer_mla

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Registered in pieces: torch's own pinned memory would take the next power of two."""
        from sglang.srt.mem_cache.pool_host.common import (
            HostTensorAllocator,
            alloc_with_host_register,
        )

        return alloc_with_host_register(
            (num_bytes,), torch.uint8, "cpu", pin_memory=True, allocator=HostTensorAllocator()
        )

    def in_order(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._module.stream(self._stream)
        return context

    def copy(self, source: torch.Tensor, pages: Ids, target: torch.Tensor, places: Ids) -> None:
        page_bytes = source.shape[1]
        pieces = pieces_of(page_bytes)
        numbers = torch.from_numpy(np.stack([_pieces(pages, pieces), _pieces(places, pieces)]))
        sources, targets = self._to_device(numbers)
        self._copy(
            src=source,
            dst=target,
            src_indices=sources,
            dst_indices=targets,
            item_size=page_bytes // pieces,
            block_quota=BLOCKS,
        )

    def _to_device(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.pin_memory().to(self._device, non_blocking=True)

    def wait(self) -> None:
        self._stream.synchronize()


def pieces_of(page_bytes: int) -> int:
    """Into how many equal pieces a page is cut for the kernel, which copies 16 bytes at a time; one
    where none of at most `PIECE_BYTES` fits."""
    least = -(-page_bytes // PIECE_BYTES)
    return next((n for n in range(least, 4 * least) if page_bytes % (16 * n) == 0), 1)


def _pieces(pages: Ids, pieces: int) -> Ids:
    """The numbers of all pieces of ``pages``, in order."""
    return (pages[:, None] * pieces + np.arange(pieces)).ravel()


def why_not(device: str) -> str:
    """Why there are no copies for ``device``; empty where there are."""
    if device == "cpu":
        return ""
    if device != "cuda" or torch.version.hip:
        return "copies are written for NVIDIA GPUs and for a CPU; leave it out"
    try:
        import sgl_kernel.kvcacheio  # noqa: F401
    except ImportError as error:
        return f"needs the copies of sgl_kernel ({error}): install sglang-kernel, or leave it out"
    return ""
