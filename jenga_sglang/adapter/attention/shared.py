"""What all attention backends on one pool share, as there are several where a server drafts.

Changes of the page tables are told once, so one copy follows them for all. Kernels run one after
the other on one stream, so they may have the same workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from jenga_sglang.adapter.attention.page_tables import PageTableCopy
from jenga_sglang.adapter.kv_pool import JengaKVPool

_of_pool: WeakKeyDictionary[JengaKVPool, Shared] = WeakKeyDictionary()


@dataclass
class Shared:
    """``page_tables`` of every group that a pool began with, and ``workspaces`` by name."""

    page_tables: PageTableCopy
    workspaces: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, pool: JengaKVPool) -> Shared:
        """What the pool's backends share; made when the first of them asks."""
        shared = _of_pool.get(pool)
        if shared is None:
            tables = PageTableCopy(pool.manager, sorted(pool.layouts), pool.device)
            shared = _of_pool[pool] = cls(tables)
        return shared

    def workspace(self, name: str, size_bytes: int) -> torch.Tensor:
        """(size_bytes,) uint8 on the device, zeros when it is made."""
        made = self.workspaces.get(name)
        if made is None or len(made) != size_bytes:
            device = self.page_tables.entries.device
            made = self.workspaces[name] = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
        return made
