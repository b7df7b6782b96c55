"""Which groups of layers a pool has, and what pages of a history take in each of them."""

from __future__ import annotations

from functools import lru_cache

from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ranges import Range

# Pages of a history, one part after the other: how many, and the groups that each of them is in.
Parts = tuple[tuple[int, tuple[int, ...]], ...]

# Of pages of a history those, by position, that have one small page for all stripes of a group.
Shared = tuple[tuple[int, Range], ...]

REMEMBERED = 1 << 10  # demands of parts of histories


class Groups:
    """Groups by number: those of recurrent states, and those of KV rows of text and of what an
    encoder made. ``stripes[g]`` small pages of group g back a page of tokens."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.num_groups = len(geometry.groups)
        self.state_groups = [g for g, cut in enumerate(geometry.groups) if cut.spec.is_state]
        # Groups of KV rows: of tokens, and of what an encoder made.
        self.row_groups: list[int] = []
        self.encoder_groups: list[int] = []
        for g, cut in enumerate(geometry.groups):
            if not cut.spec.is_state:
                self._rows_like(cut.spec.dependency).append(g)
        self.stripes = [cut.stripes for cut in geometry.groups]
        # Nearly always asked about one page.
        self.demand_of_parts = lru_cache(REMEMBERED)(self._demand_of_parts)

    def add_group(self, geometry: Geometry) -> None:
        """``geometry`` is this one with one more group of rows."""
        group = self.num_groups
        self.geometry = geometry
        self.num_groups += 1
        self.demand_of_parts.cache_clear()
        self._rows_like(geometry.groups[group].spec.dependency).append(group)
        self.stripes.append(geometry.groups[group].stripes)

    def _rows_like(self, dependency: Dependency) -> list[int]:
        return self.encoder_groups if dependency.reads_encoder else self.row_groups

    def small_demand(self, pages: int, states: int = 0) -> tuple[int, ...]:
        """Small pages per group that ``pages`` new pages of text and ``states`` new states take."""
        return self.demand_of_parts(((pages, tuple(self.row_groups)),), states)

    def demand_of_step(self, parts: Parts, shared: Shared, states: int = 0) -> tuple[int, ...]:
        """`small_demand` of ``parts``, of pages that are ``shared`` besides, and of states."""
        demand = self.demand_of_parts(parts, states)
        if not shared:
            return demand
        counts = list(demand)
        for g, pages in shared:
            counts[g] += pages.size
        return tuple(counts)

    def _demand_of_parts(self, parts: Parts, states: int = 0) -> tuple[int, ...]:
        """Small pages per group that ``parts`` and ``states`` new states take."""
        counts = [0] * self.num_groups
        for g in self.state_groups:
            counts[g] = states
        for pages, groups in parts:
            for g in groups:
                counts[g] += pages
        return tuple([n * s for n, s in zip(counts, self.stripes, strict=True)])
