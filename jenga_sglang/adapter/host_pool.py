"""Host memory below the pool: one uint8 tensor of the same cut, and the copies to and from it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from jenga_sglang.adapter.host_copies import HostCopies
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.core.admission import whole_tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import PageCopy

FREED = 0xFF  # NaN in every float format


class HostPool:
    """Has ``copies`` move whole small pages between the buffer of ``pool`` and its own.

    With ``poison_freed`` pages that were freed are filled with NaN before anything reuses them.
    """

    def __init__(
        self, pool: JengaKVPool, manager: TieredManager, copies: HostCopies, *, poison_freed: bool
    ) -> None:
        self.manager = manager
        self.pool = pool
        self.copies = copies
        self.buffer = copies.allocate(manager.host_geometry.pool_bytes)
        # How often each small page was written, by group: whoever reads one
        # without asking the books first knows afterwards whether it is still the same.
        self.versions = [
            np.zeros((manager.host_geometry.num_large_pages + 1) * k, np.int64)
            for k in manager.memory.host.large.small_per_large
        ]
        self._poison_freed = poison_freed
        if poison_freed:
            self.record_freed()

    def record_freed(self) -> None:
        """The manager's books are new: note from now on what they free, where that is wanted."""
        if self._poison_freed:
            self.manager.memory.host.journal.record_freed()

    def run(self, copies: Iterable[PageCopy]) -> None:
        """Have ``copies`` made, in order, before the next step."""
        with self.copies.in_order():
            poisoned = False
            for copy in copies:
                device = self._pages(self.pool.buffer, copy.group)
                host = self._pages(self.buffer, copy.group)
                if copy.to_host:
                    self.note_written(copy.group, copy.host)
                    self.copies.copy(device, copy.device, host, copy.host)
                    continue
                if not poisoned:
                    # What was freed to make room for a load is overwritten before it, not after.
                    self.pool.poison_freed()
                    poisoned = True
                self.copies.copy(host, copy.host, device, copy.device)
        self.poison_freed()

    def bytes_of(self, copies: Iterable[PageCopy]) -> int:
        """How much `run` copies for them."""
        groups = self.manager.geometry.groups
        return sum(len(copy.host) * groups[copy.group].small_page_bytes for copy in copies)

    def note_written(self, group: int, small: Ids) -> None:
        """Small pages of ``group`` are about to be written."""
        self.versions[group][small] += 1

    def pages(self, group: int) -> torch.Tensor:
        """(small pages, bytes of one) uint8 of ``group`` in host memory, a view."""
        return self._pages(self.buffer, group)

    def _pages(self, buffer: torch.Tensor, group: int) -> torch.Tensor:
        """(small pages, bytes of one) of ``group``, a view."""
        size = self.manager.geometry.groups[group].small_page_bytes
        return buffer[: len(buffer) // size * size].view(-1, size)

    def poison_freed(self) -> None:
        """Debug: fill with NaN what was freed and is still free: its bytes belong to no other group
        by now."""
        if not self._poison_freed:
            return
        books = self.manager.memory.host
        self.copies.wait()
        for group, small in books.journal.take_freed():
            owner = books.large.owner[books.large.large_of(group, small)]
            free = (books.virtual_of[group][small] == 0) & ((owner < 0) | (owner == group))
            self._pages(self.buffer, group)[torch.from_numpy(small[free])] = FREED

    # -- what SGLang's metrics ask ------------------------------------------------------------

    @property
    def logical_size(self) -> int:
        """Tokens that fit if every group had to hold all of them."""
        return whole_tokens(self.manager, self.manager.memory.host.large.num_large)

    def available_size(self) -> int:
        """Tokens that fit beside what the host holds now, as `logical_size` counts them."""
        return whole_tokens(self.manager, self.manager.memory.host.large.num_free)
