"""A copy of the page tables on the device, told only what changed.

The host's books are the authority. The copy is brought up to them when a batch is launched, on the
stream that runs the batch: after the reads of the batch before, which may still be at work, and
before those of its own. So one copy is enough. The host may be steps ahead of the device: a change,
however large, travels in pinned memory of its own, and the host never waits for an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from jenga_sglang.adapter.staged import to_device
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager

NO_PAGE = -1
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
        stripes = [table.shape[1] for table in tables]
        firsts = np.cumsum([0, *stripes[:-1]]).tolist()
        self._first: dict[int, int] = dict(zip(self.groups, firsts, strict=True))

    def first_table(self, group: int) -> int:
        """Which table is the first of the group's."""
        return self._first[group]

    def follow(self) -> None:
        """Make the copy equal to the books as they are now, in stream order."""
        memory = self._manager.memory
        if memory is not self._followed:
            # The first time, or the cache was flushed and its books begun anew.
            self._followed = memory
            memory.journal.record_changes()
            memory.journal.take_changes()
            self.entries.copy_(torch.from_numpy(self._values(slice(None))))
            return
        changed = memory.journal.take_changes()
        if len(changed):
            device = self.entries.device
            values = to_device(self._values(changed), device)
            self.entries.index_copy_(1, to_device(changed, device), values)

    def _values(self, virtual: Ids | slice) -> NDArray[np.int32]:
        """(tables, pages) of the books, a missing page as -1."""
        followed = present(self._followed, "the page tables on the device follow no books")
        values = np.concatenate([followed.table[g][virtual].T for g in self.groups])
        values[values == 0] = NO_PAGE
        return values.astype(np.int32)
