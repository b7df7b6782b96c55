"""The cuts of a pool that the planner chooses from.

Every large page size that some choice of stripes makes without padding is looked at, and every
multiple of such a size (of some of the groups) that another small page reaches with a little
padding. Given the large page, a group's cost does not depend on what the others do, so each
group takes its cheapest cut apart from the rest; that keeps the search small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from jenga_sglang.core.cost import Cost, Load
from jenga_sglang.core.geometry import ALIGN_BYTES, GroupGeometry, LayerGroupSpec

GOOD_ALIGN_BYTES = 128  # a cache line; wins ties
COST_DIGITS = 6  # costs closer than 1e-6 are equal
MAX_SIZES = 512  # bounds the search on groups that share no factor
MAX_TRIES = 64  # bounds the search for a padding that divides

Origin = tuple[int, int | None]  # index of a given spec; part of its state where split
Variant = tuple[tuple[LayerGroupSpec, Origin], ...]


@dataclass(frozen=True)
class Limits:
    """What a geometry must keep to. ``None`` derives the bound of the large page from the pool.

    ``keep_row_grid`` allows only padding by whole rows, so that every row of the pool keeps lying
    on one grid and kernels for one-token pages can read it.
    """

    large_page_bytes: int | None = None
    large_page_share: float = 1 / 512
    large_page_max_bytes: int = 32 << 20
    max_padding: float = 1 / 32  # of the small page's payload
    keep_row_grid: bool = True

    def bound_bytes(self, pool_bytes: int) -> int:
        """The most that a large page may take."""
        if self.large_page_bytes is not None:
            return self.large_page_bytes
        return min(int(pool_bytes * self.large_page_share), self.large_page_max_bytes)


@dataclass(frozen=True)
class Candidate:
    """One cut with its cost. ``origins`` names the given spec that each group comes from."""

    groups: tuple[GroupGeometry, ...]
    origins: tuple[Origin, ...]
    cost: Cost

    @property
    def page_size(self) -> int:
        return self.groups[0].page_size

    @property
    def large_page_bytes(self) -> int:
        return math.lcm(*(g.small_page_bytes for g in self.groups))

    @property
    def num_tables(self) -> int:
        return sum(g.stripes for g in self.groups)

    @property
    def is_exact_lcm(self) -> bool:
        """Whether it is the paper's layout: one stripe a group, states whole, no padding."""
        return all(
            g.stripes == 1 and not g.padding_bytes and part is None
            for g, (_, part) in zip(self.groups, self.origins, strict=True)
        )

    def order(self) -> tuple[float, ...]:
        """Sorting key, best first."""
        odd = sum(g.small_page_bytes % GOOD_ALIGN_BYTES != 0 for g in self.groups)
        padding = sum(g.padding_bytes for g in self.groups)
        total = round(self.cost.total, COST_DIGITS)
        return (total, self.num_tables, odd, padding, self.large_page_bytes, self.page_size)


@dataclass(frozen=True)
class Search:
    """All cuts for one load. Pure; what is asked twice is computed once."""

    load: Load
    limits: Limits
    page_sizes: tuple[int, ...]

    def within(self, bound_bytes: int) -> tuple[list[Candidate], int]:
        """Candidates whose large page keeps to ``bound_bytes``, and the bound itself.

        Where there is none: those with the smallest possible large page, and its size.
        """
        if found := self._candidates(bound_bytes):
            return found, bound_bytes
        while not found:
            bound_bytes = max(ALIGN_BYTES, 2 * bound_bytes)
            found = self._candidates(bound_bytes)
        smallest = min(c.large_page_bytes for c in found)
        return [c for c in found if c.large_page_bytes == smallest], smallest

    def references(self) -> Iterator[Candidate]:
        """The paper's layouts, one per page size, whatever their large page."""
        for page_size in self.page_sizes:
            variant = next(self._variants())
            groups = [GroupGeometry(spec, page_size) for spec, _ in variant]
            size = math.lcm(*(g.small_page_bytes for g in groups))
            yield self._candidate(variant, groups, size)

    def _candidates(self, bound_bytes: int) -> list[Candidate]:
        found: dict[tuple[GroupGeometry, ...], Candidate] = {}
        for page_size, variant in product(self.page_sizes, self._variants()):
            payloads = [_payloads(spec, page_size) for spec, _ in variant]
            for size in sorted(self._large_sizes(payloads, bound_bytes)):
                cut = self._cut(variant, page_size, size)
                if cut is not None:
                    found.setdefault(cut.groups, cut)
        return list(found.values())

    def _variants(self) -> Iterator[Variant]:
        """The given groups, with the parts of every state together (first) or apart."""
        choices: list[list[Variant]] = []
        for index, spec in enumerate(self.load.specs):
            whole: Variant = ((spec, (index, None)),)
            parts: Variant = tuple(
                (replace(spec, name=f"{spec.name}.{p}", state_bytes=(size,)), (index, p))
                for p, size in enumerate(spec.state_bytes)
            )
            choices.append([whole, parts] if len(parts) > 1 else [whole])
        for choice in product(*choices):
            yield tuple(pair for pairs in choice for pair in pairs)

    def _large_sizes(self, payloads: list[list[int]], bound_bytes: int) -> set[int]:
        """Large pages to look at, in bytes, none above ``bound_bytes``."""
        bases = {ALIGN_BYTES}
        for of_group in payloads:
            joined = {math.lcm(base, p) for base in bases for p in of_group}
            bases |= {size for size in joined if size <= bound_bytes}
            bases = set(sorted(bases)[:MAX_SIZES])
        padding = self.limits.max_padding
        padded = {
            size
            for base in bases
            for p in {p for of_group in payloads for p in of_group}
            if (size := -(-p // base) * base) <= min(bound_bytes, p * (1 + padding))
        }
        return bases | padded

    def _cut(self, variant: Variant, page_size: int, size: int) -> Candidate | None:
        """The cheapest cut of large pages of ``size`` bytes; None when some group has none."""
        groups: list[GroupGeometry] = []
        for spec, _ in variant:
            group = _cheapest(self.load, self.limits, spec, page_size, size)
            if group is None:
                return None
            groups.append(group)
        return self._candidate(variant, groups, math.lcm(*(g.small_page_bytes for g in groups)))

    def _candidate(self, variant: Variant, groups: list[GroupGeometry], size: int) -> Candidate:
        cost = self.load.pool_cost(size)
        for group in groups:
            cost += self.load.group_cost(group, size // group.small_page_bytes)
        return Candidate(tuple(groups), tuple(origin for _, origin in variant), cost)


def _payloads(spec: LayerGroupSpec, page_size: int) -> list[int]:
    """Small pages that the group can be cut into without padding, in bytes."""
    return [n * spec.layer_page_bytes(page_size) for n in _divisors(len(spec.layers))]


@cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, number + 1) if number % n == 0)


def _cheapest(
    load: Load, limits: Limits, spec: LayerGroupSpec, page_size: int, size: int
) -> GroupGeometry | None:
    """The group's cheapest cut of large pages of ``size`` bytes."""
    cuts = []
    for stripes in _divisors(len(spec.layers)):
        padding = _least_padding(limits, GroupGeometry(spec, page_size, stripes), size)
        if padding is not None:
            group = GroupGeometry(spec, page_size, stripes, padding)
            cost = load.group_cost(group, size // group.small_page_bytes)
            cuts.append((round(cost.total, COST_DIGITS), stripes, padding, group))
    return min(cuts, key=lambda cut: cut[:3])[3] if cuts else None


def _least_padding(limits: Limits, group: GroupGeometry, size: int) -> int | None:
    """Bytes of padding with which the small page divides ``size``; None when that is too many."""
    payload = group.payload_bytes
    aligned = -(-payload // ALIGN_BYTES) * ALIGN_BYTES
    most = max(aligned, int(payload * (1 + limits.max_padding)))
    densest = size // payload
    for count in range(densest, max(0, densest - MAX_TRIES), -1):
        small = size // count
        if small > most:
            return None
        if size % count == 0 and small % ALIGN_BYTES == 0 and _keeps_grid(limits, group, small):
            return small - payload
    return None


def _keeps_grid(limits: Limits, group: GroupGeometry, small: int) -> bool:
    """Whether the rows of small pages of ``small`` bytes still lie on one grid, if they did."""
    k_bytes, v_bytes = group.spec.k_bytes, group.spec.v_bytes
    has_grid = not group.spec.is_state and v_bytes in (0, k_bytes)
    return not (limits.keep_row_grid and has_grid) or small % k_bytes == 0
