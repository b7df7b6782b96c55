"""What a cut of the pool costs: the terms that the planner adds up.

Every term is a share without a unit: for a request of a given length, extra bytes per byte that
it needs, averaged over the expected lengths. A pool filled with requests of one such length
serves that share fewer of them, and a per cent of step time is taken to be worth as much as a
per cent of the pool. The terms:

``last pages``
    Slots of partly filled pages: half a page per growing group, and what a window's pages hold
    beyond the window. Depends on ``page_size`` alone.
``padding``
    Bytes that fill small pages up.
``holes``
    Small pages of a request's large pages that it does not use. They serve no other group, and
    another request only when memory is scarce. A count of small pages that varies with the
    length leaves half a large page on average, less where it comes in steps; a request that
    fills less than one large page leaves the rest of it; a state leaves exactly what it leaves.
``pool``
    The reserved large page and, on average, half a large page at the end, as a share of the pool.
``tables``
    `TABLE_SHARE` for every page table, and `TABLE_ENTRY_BYTES` for every small page.

Tables are cheap but not free. All are built in one launch and the stripes of one group share
one attention plan, so a table adds one row of blocks to that launch and one index buffer:
`TABLE_SHARE` takes it as 1 µs of a step of 10 ms. (Where every group costs launches and plans
of its own, a model with 46 groups has been seen to run at half speed.) Each entry is held once
per page, written once per step into the index buffer and read back from it: 3 times 4 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jenga_sglang.core.cut.demand import ideal_bytes, small_pages
from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec

TABLE_SHARE = 1e-4
TABLE_ENTRY_BYTES = 12


@dataclass(frozen=True)
class Cost:
    """The terms of the module's docstring, each as a share of the bytes that are needed."""

    last_pages: float = 0.0
    padding: float = 0.0
    holes: float = 0.0
    pool: float = 0.0
    tables: float = 0.0

    @property
    def waste(self) -> float:
        """Share of memory lost, whatever the reason."""
        return self.last_pages + self.padding + self.holes + self.pool

    @property
    def total(self) -> float:
        return self.waste + self.tables

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.last_pages + other.last_pages,
            self.padding + other.padding,
            self.holes + other.holes,
            self.pool + other.pool,
            self.tables + other.tables,
        )


@dataclass(frozen=True)
class Load:
    """Groups and the lengths, in tokens, that their requests are expected to have."""

    specs: tuple[LayerGroupSpec, ...]
    lengths: tuple[int, ...]
    pool_bytes: int

    @cached_property
    def needed_bytes(self) -> list[int]:
        """Bytes that a request of every length needs, nothing rounded."""
        return [sum(ideal_bytes(s, n) for s in self.specs) for n in self.lengths]

    def share(self, extra_bytes: Sequence[float]) -> float:
        """``extra_bytes`` per length as a share of what is needed, averaged over the lengths."""
        pairs = zip(extra_bytes, self.needed_bytes, strict=True)
        return sum(extra / max(1, needed) for extra, needed in pairs) / len(self.lengths)

    def group_cost(self, group: GroupGeometry, small_per_large: int) -> Cost:
        """What one group adds to the cost when ``small_per_large`` small pages are a large one."""
        pages = [small_pages(group, n) for n in self.lengths]
        holes = [_holes(group, count, small_per_large) for count in pages]
        entry_bytes = 0 if group.spec.is_state else TABLE_ENTRY_BYTES
        return Cost(
            last_pages=self.share([_last_page_bytes(group, n) for n in self.lengths]),
            padding=self.share([count * group.padding_bytes for count in pages]),
            holes=self.share([count * group.small_page_bytes for count in holes]),
            tables=TABLE_SHARE * group.stripes + self.share([n * entry_bytes for n in pages]),
        )

    def pool_cost(self, large_page_bytes: int) -> Cost:
        return Cost(pool=1.5 * large_page_bytes / self.pool_bytes)


def _last_page_bytes(group: GroupGeometry, length: int) -> float:
    spec, page_size = group.spec, group.page_size
    if spec.is_state:
        return 0
    pages = spec.dependency.peak_pages(length, page_size)
    if spec.dependency.peak_pages(length + page_size, page_size) > pages:
        return spec.bytes_per_token * (page_size - 1) / 2
    return spec.bytes_per_token * (pages * page_size - spec.dependency.peak_tokens(length))


def _holes(group: GroupGeometry, count: int, small_per_large: int) -> float:
    """Expected free small pages in the large pages of a request that holds ``count``."""
    if count == 0:
        return 0
    if group.spec.is_state:
        return -count % small_per_large
    step = math.gcd(group.stripes, small_per_large)
    return max(small_per_large - count, (small_per_large - step) / 2)
