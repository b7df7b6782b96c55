"""A copy of the page tables on the device, told only what changed.

The host's books are the authority. The copy is brought up to them when a batch is launched, on the
stream that runs the batch: after the reads of the batch before, which may still be at work, and
before those of its own. So one copy is enough; what exists several times is the pinned memory that
the changes travel in, because the host may be steps ahead of the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from flashinfer_ext.staging import PinnedRing
from jenga_sglang.core.corrupt import present
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.memory import Memory

NO_PAGE = -1
ID_BYTES, ENTRY_BYTES = 8, 4
# Changes of one copy; more of them, after a prefill or an eviction, go in several.
CHANGES_AT_ONCE = 1024
STEPS_IN_FLIGHT = 2


class PageTableCopy:
    """``entries[t, v]``: small page of virtual page ``v`` in table ``t``, or -1.

    entries: (tables, rows of the books) int32 on ``device``; one table per stripe, the stripes of
    ``groups`` one after the other.
    """

    def __init__(self, manager: Manager, groups: Sequence[int], device: torch.device | str) -> None:
        self.groups = tuple(groups)
        tables = [manager.memory.table[g] for g in groups]
        shape = (sum(table.shape[1] for table in tables), len(tables[0]))
        self.entries = torch.full(shape, NO_PAGE, dtype=torch.int32, device=device)
        self._manager = manager
        self._followed: Memory | None = None
        row_bytes = ID_BYTES + ENTRY_BYTES * len(self.entries)
        self._ring = PinnedRing(
            CHANGES_AT_ONCE * row_bytes, STEPS_IN_FLIGHT + 1, self.entries.device
        )

    def follow(self) -> None:
        """Make the copy equal to the books as they are now, in stream order."""
        memory = self._manager.memory
        if memory is not self._followed:
            # The first time, or the cache was flushed and its books begun anew.
            self._followed = memory
            memory.record_changes()
            memory.take_changes()
            self.entries.copy_(torch.from_numpy(self._values(slice(None))))
            return
        changed = memory.take_changes()
        for start in range(0, len(changed), CHANGES_AT_ONCE):
            self._copy(changed[start : start + CHANGES_AT_ONCE])

    def _values(self, virtual: Ids | slice) -> NDArray[np.int32]:
        """(tables, pages) of the books, a missing page as -1."""
        followed = present(self._followed, "the page tables on the device follow no books")
        values = np.concatenate([followed.table[g][virtual].T for g in self.groups])
        values[values == 0] = NO_PAGE
        return values.astype(np.int32)

    def _copy(self, virtual: Ids) -> None:
        values = self._values(virtual)
        ids_bytes = len(virtual) * ID_BYTES
        with self._ring.buffer() as pinned:
            ids_cpu = pinned[:ids_bytes].view(torch.int64)
            ids_cpu.copy_(torch.from_numpy(virtual))
            values_cpu = pinned[ids_bytes : ids_bytes + values.nbytes].view(torch.int32)
            values_cpu.copy_(torch.from_numpy(values.ravel()))
            device = self.entries.device
            self.entries.index_copy_(
                1,
                ids_cpu.to(device, non_blocking=True),
                values_cpu.to(device, non_blocking=True).view(values.shape),
            )
