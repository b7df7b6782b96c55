"""The cuts of a pool that the planner chooses from.

Every large page size that some choice of stripes makes without padding is looked at, and every
multiple of such a size (of some of the groups) that another small page reaches with a little
padding. Where none of these keeps to the bound, so is every size with very many divisors. Given
the large page, a group's cost does not depend on what the others do, so each group takes its
cheapest cut apart from the rest; that keeps the search small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from jenga_sglang.core.cut.cost import Cost, Load
from jenga_sglang.core.cut.geometry import ALIGN_BYTES, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.ids import ceil_div, round_up

GOOD_ALIGN_BYTES = 128  # a cache line; wins ties
COST_DIGITS = 6
MAX_SIZES = 512  # bounds the search on groups that share no factor
SLACK = 1.25  # a bound that cannot be kept is raised to this times what is possible
PRIMORIALS = (2, 6, 30, 210, 2310, 30030)

Origin = tuple[int, int | None]  # index of a given spec; part of its state where split
Variant = tuple[tuple[LayerGroupSpec, Origin], ...]


@dataclass(frozen=True)
class Limits:
    """What a geometry must keep to. ``None`` derives the bound of the large page from the pool.

    ``keep_row_grid`` allows only padding by whole rows, so that every row of the pool keeps lying
    on one grid and kernels for one-token pages can read it. ``split_states`` allows the parts of
    a state to lie apart, which no server can use yet: SGLang's kernels find all of them by one
    number.
    """

    large_page_bytes: int | None = None
    large_page_share: float = 1 / 512
    large_page_max_bytes: int = 32 << 20
    max_padding: float = 1 / 32  # of the small page's payload
    keep_row_grid: bool = True
    split_states: bool = False

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

    @property
    def is_aligned(self) -> bool:
        return all(g.small_page_bytes % ALIGN_BYTES == 0 for g in self.groups)

    def simplicity(self) -> tuple[float, ...]:
        """Sorting key among candidates of equal cost, simplest first."""
        odd = sum(g.small_page_bytes % GOOD_ALIGN_BYTES != 0 for g in self.groups)
        padding = sum(g.padding_bytes for g in self.groups)
        return (self.num_tables, odd, padding, self.large_page_bytes, self.page_size)

    def order(self) -> tuple[float, ...]:
        """Sorting key, cheapest first."""
        return (round(self.cost.total, COST_DIGITS), *self.simplicity())


@dataclass(frozen=True)
class Search:
    """All cuts for one load."""

    load: Load
    limits: Limits
    page_sizes: tuple[int, ...]

    def within(self, bound_bytes: int) -> tuple[list[Candidate], int]:
        """Candidates whose large page keeps to ``bound_bytes``, and the bound itself.

        Where there is none, the bound is raised to `SLACK` times the smallest possible one.
        """
        if found := self._candidates(bound_bytes):
            return found, bound_bytes
        if found := self._candidates(bound_bytes, smooth=True):
            return found, bound_bytes
        while not found:
            bound_bytes = max(ALIGN_BYTES, 2 * bound_bytes)
            found = self._candidates(bound_bytes, smooth=True)
        # The raised bound may lie above the last one looked at, and a cut's large page below the
        # size that it was found with, so a search up to the raised bound could miss it.
        wider = self._candidates(2 * bound_bytes, smooth=True)
        wider = list({c.groups: c for c in [*found, *wider]}.values())
        raised = int(SLACK * min(c.large_page_bytes for c in wider))
        return [c for c in wider if c.large_page_bytes <= raised], raised

    def references(self) -> Iterator[Candidate]:
        """The paper's layouts, one per page size, whatever their large page."""
        for page_size in self.page_sizes:
            variant = next(self._variants())
            groups = [GroupGeometry(spec, page_size) for spec, _ in variant]
            size = math.lcm(*(g.small_page_bytes for g in groups))
            yield self._candidate(variant, groups, size)

    def _candidates(self, bound_bytes: int, smooth: bool = False) -> list[Candidate]:
        found: dict[tuple[GroupGeometry, ...], Candidate] = {}
        for page_size, variant in product(self.page_sizes, self._variants()):
            options = [_options(self.limits, spec, page_size) for spec, _ in variant]
            sizes = self._large_sizes(options, bound_bytes)
            if smooth:
                sizes |= _smooth_sizes(options, bound_bytes)
            for size in sorted(sizes):
                cut = self._cut(variant, options, size)
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
            splits = self.limits.split_states and len(parts) > 1
            choices.append([whole, parts] if splits else [whole])
        for choice in product(*choices):
            yield tuple(pair for pairs in choice for pair in pairs)

    def _large_sizes(self, options: list[list[_Option]], bound_bytes: int) -> set[int]:
        """Large pages to look at, in bytes, none above ``bound_bytes``."""
        payloads = [{option.least_bytes for option in of_group} for of_group in options]
        bases = {ALIGN_BYTES}
        for of_group in payloads:
            joined = {math.lcm(base, p) for base in bases for p in of_group}
            bases |= {size for size in joined if size <= bound_bytes}
            bases = set(sorted(bases)[:MAX_SIZES])
        padding = self.limits.max_padding
        padded = {
            size
            for base in bases
            for p in set().union(*payloads)
            if (size := round_up(p, base)) <= min(bound_bytes, p * (1 + padding))
        }
        return bases | padded

    def _cut(
        self, variant: Variant, options: list[list[_Option]], large_page_bytes: int
    ) -> Candidate | None:
        """The cheapest cut of large pages of that size; None when some group has none."""
        choices: list[list[GroupGeometry]] = []
        for of_group in options:
            cuts = [cut for option in of_group if (cut := option.cut(large_page_bytes)) is not None]
            if not cuts:
                return None
            choices.append(cuts)
        groups = [self._cheapest(cuts, large_page_bytes) for cuts in choices]
        return self._candidate(variant, groups, math.lcm(*(g.small_page_bytes for g in groups)))

    def _cheapest(self, cuts: list[GroupGeometry], large_page_bytes: int) -> GroupGeometry:
        def order(group: GroupGeometry) -> tuple[float, ...]:
            cost = self.load.group_cost(group, large_page_bytes // group.small_page_bytes)
            return (round(cost.total, COST_DIGITS), group.stripes, group.padding_bytes)

        return min(cuts, key=order)

    def _candidate(
        self, variant: Variant, groups: list[GroupGeometry], large_page_bytes: int
    ) -> Candidate:
        cost = self.load.pool_cost(large_page_bytes)
        for group in groups:
            cost += self.load.group_cost(group, large_page_bytes // group.small_page_bytes)
        return Candidate(tuple(groups), tuple(origin for _, origin in variant), cost)


def _smooth_sizes(options: list[list[_Option]], bound_bytes: int) -> set[int]:
    """Large pages, in bytes, that have a divisor close above almost any small page.

    Groups whose sizes share no factor meet in no small multiple, padded one by one or not. A
    multiple of everybody's unit by a product of primorials has the most divisors for its size.
    """
    base = math.lcm(*(option.unit_bytes for of_group in options for option in of_group))
    sizes = {base} if base <= bound_bytes else set()
    for primorial in PRIMORIALS:
        for size in tuple(sizes):
            while (size := size * primorial) <= bound_bytes:
                sizes.add(size)
    return sizes


@dataclass(frozen=True)
class _Option:
    """One number of stripes of a group. ``unit_bytes`` is what a small page must be a multiple
    of, ``least_bytes`` and ``most_bytes`` how large it may be."""

    group: GroupGeometry
    payload_bytes: int
    unit_bytes: int
    least_bytes: int
    most_bytes: int

    def cut(self, large_page_bytes: int) -> GroupGeometry | None:
        """The stripes with the least padding that divides the large page; None when it is too
        much."""
        for small in self._sizes_within(large_page_bytes):
            if large_page_bytes % small == 0 and small % self.unit_bytes == 0:
                return replace(self.group, padding_bytes=small - self.payload_bytes)
        return None

    def _sizes_within(self, large_page_bytes: int) -> Iterator[int]:
        """What may divide the large page, smallest first: by units or by counts, whichever are
        fewer."""
        fewest = ceil_div(large_page_bytes, self.most_bytes)
        densest = large_page_bytes // self.least_bytes
        if densest - fewest < (self.most_bytes - self.least_bytes) // self.unit_bytes:
            return (large_page_bytes // count for count in range(densest, fewest - 1, -1))
        return iter(range(self.least_bytes, self.most_bytes + 1, self.unit_bytes))


def _options(limits: Limits, spec: LayerGroupSpec, page_size: int) -> list[_Option]:
    unit = _unit_bytes(limits, spec)
    options: list[_Option] = []
    num_layers = len(spec.layers)
    for stripes in (n for n in range(1, num_layers + 1) if num_layers % n == 0):
        group = GroupGeometry(spec, page_size, stripes)
        payload = group.payload_bytes
        least = round_up(payload, unit)
        most = max(least, int(payload * (1 + limits.max_padding)))
        options.append(_Option(group, payload, unit, least, most))
    return options


def _unit_bytes(limits: Limits, spec: LayerGroupSpec) -> int:
    """What a small page must be a multiple of: the alignment, and K rows on one grid with V."""
    has_grid = not spec.is_state and spec.v_bytes in (0, spec.k_bytes)
    if limits.keep_row_grid and has_grid:
        return math.lcm(ALIGN_BYTES, spec.k_bytes)
    return ALIGN_BYTES
