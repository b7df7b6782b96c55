"""The stages of a pipeline hold other layers of the same groups, and decide alike.

Whatever is decided counts in large pages, and in small pages of a large page. So the *books* of
every stage are one cut, that of a stage with the most layers of every group; the *bytes* are a
stage's own: its large page is as large as its layers need, and has as many small pages::

    books     | 3 small pages of "full" or 2 of "window" |  the same on every stage
    stage 0   | 3 of 2 layers           or 2 of 3 layers |  nothing is padded
    stage 1   | 3 of 2 layers           or 2 of 2 layers |  a small page of "window" has room for 3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jenga_sglang.core.cut.geometry import (
    ALIGN_BYTES,
    Geometry,
    GroupGeometry,
    LayerGroupSpec,
)
from jenga_sglang.core.ids import ceil_div, round_up


@dataclass(frozen=True)
class StageGroup:
    """What one stage has of a group: at least one layer, in small pages with room for as many
    stripes as on every other stage. The last stripes may hold fewer layers, or none."""

    spec: LayerGroupSpec
    page_size: int
    stripes: int
    small_page_bytes: int

    @property
    def layers_per_stripe(self) -> int:
        return ceil_div(len(self.spec.layers), self.stripes)


@dataclass(frozen=True)
class StageCut:
    """A stage's bytes under books that all stages share. ``groups`` are in the order of the books;
    None is one that the stage has no layer of."""

    groups: tuple[GroupGeometry | StageGroup | None, ...]
    page_size: int
    large_page_bytes: int
    pool_bytes: int

    @property
    def padding_share(self) -> float:
        """How much of a large page is padding, where it is least, of the groups it has."""
        used = [
            g.layers_per_stripe * g.spec.layer_page_bytes(self.page_size) / g.small_page_bytes
            for g in self.groups
            if g is not None
        ]
        return 1 - max(used)


def widest(stages: Sequence[LayerGroupSpec | None]) -> LayerGroupSpec:
    """Of one group's layers on every stage, those of the first stage that has the most."""
    return max((spec for spec in stages if spec is not None), key=lambda spec: len(spec.layers))


def stage_cuts(
    books: Geometry,
    stages: Sequence[Sequence[LayerGroupSpec | None]],
    budgets_bytes: Sequence[int],
) -> tuple[Geometry, list[StageCut]]:
    """The books with as many large pages as fit into every stage's budget, and each stage's cut.

    ``stages`` has for each stage its layers of every group of ``books``, in that order. Raises
    ``ValueError`` where some stage has no room for one large page beside the reserved one.
    """
    all_bytes = [_large_page_bytes(books, specs) for specs in stages]
    pages = min(b // large for b, large in zip(budgets_bytes, all_bytes, strict=True))
    shared = books.resized(pages * books.large_page_bytes)
    return shared, [
        StageCut(_groups(shared, specs, large), shared.page_size, large, pages * large)
        for specs, large in zip(stages, all_bytes, strict=True)
    ]


def _large_page_bytes(books: Geometry, specs: Sequence[LayerGroupSpec | None]) -> int:
    """The least that a stage can cut into small pages on boundaries of `ALIGN_BYTES`."""
    counts = [books.small_per_large(g) for g in range(len(books.groups))]
    least = max(
        n * _payload_bytes(cut, spec)
        for n, cut, spec in zip(counts, books.groups, specs, strict=True)
    )
    return round_up(least, ALIGN_BYTES * math.lcm(*counts))


def _payload_bytes(cut: GroupGeometry, spec: LayerGroupSpec | None) -> int:
    if spec is None:
        return 0
    layers = ceil_div(len(spec.layers), cut.stripes)
    return layers * spec.layer_page_bytes(cut.page_size)


def _groups(
    books: Geometry, specs: Sequence[LayerGroupSpec | None], large_page_bytes: int
) -> tuple[StageGroup | None, ...]:
    return tuple(
        None
        if spec is None
        else StageGroup(
            spec, books.page_size, cut.stripes, large_page_bytes // books.small_per_large(g)
        )
        for g, (cut, spec) in enumerate(zip(books.groups, specs, strict=True))
    )
