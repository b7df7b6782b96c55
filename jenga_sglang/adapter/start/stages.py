"""The groups of a model whose layers are divided between the stages of a pipeline (`--pp-size`).

Every stage sees its own layers only. All tell each other what they have, and each works out the
same books from that; nothing more is exchanged (`core/cut/stages.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang.srt.runtime_context import get_parallel

from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.states import DiscoveredStates
from jenga_sglang.core.cut.geometry import TOLD_APART, Geometry, LayerGroupSpec, told_apart
from jenga_sglang.core.cut.stages import StageCut, stage_cuts, widest
from jenga_sglang.refusal import refuse

FLAG = "--pp-size"
Layers = tuple[int, ...]


@dataclass(frozen=True)
class OfStage:
    """What one stage tells the others: its groups, its states, and the bytes that it may take."""

    groups: tuple[DiscoveredGroup, ...]
    states: DiscoveredStates | None
    pool_bytes: int


class Stages:
    """What this stage has of the groups that all stages keep books of.

    ``groups`` are those groups, None where the stage has no layer of one; ``specs`` those of the
    books, each with the layers of the stage that has the most, ending with that of ``states``.
    """

    def __init__(self, told: Sequence[OfStage], rank: int) -> None:
        self._told = told
        self._rank = rank
        kinds: dict[tuple[Any, ...], list[DiscoveredGroup | None]] = {}
        for stage, of_stage in enumerate(told):
            for group in of_stage.groups:
                kinds.setdefault(_kind(group), [None] * len(told))[stage] = group
        # As discovery orders the groups of a whole model.
        self._by_group = sorted(kinds.values(), key=_first_layer)
        self.groups = [stages[rank] for stages in self._by_group]
        self.states = told[rank].states
        self.specs = self._specs()

    def _specs(self) -> tuple[LayerGroupSpec, ...]:
        specs = told_apart(
            replace(spec, name=spec.name.split(TOLD_APART)[0])
            for spec in map(_widest, self._by_group)
        )
        states = [of_stage.states for of_stage in self._told]
        if not any(states):
            return specs
        if not all(states):
            raise refuse(
                f"{FLAG} {len(states)}",
                "leaves a stage without recurrent layers, which Jenga does not serve yet; choose "
                "fewer stages",
            )
        return (*specs, widest([s.spec for s in states if s]))

    @property
    def least_bytes(self) -> int:
        """Of the bytes that stages may take, the fewest."""
        return min(of_stage.pool_bytes for of_stage in self._told)

    def cut(self, books: Geometry, less_bytes: int) -> tuple[Geometry, Geometry | StageCut]:
        """The books that all stages have room for, and this stage's bytes under them: each stage
        has ``less_bytes`` less than it said. Where there is one stage only, both are the same."""
        if len(self._told) == 1:
            alone = books.resized(self.least_bytes - less_bytes)
            return alone, alone
        by_stage = [self._of(stage) for stage in range(len(self._told))]
        budgets = [of_stage.pool_bytes - less_bytes for of_stage in self._told]
        shared, cuts = stage_cuts(books, by_stage, budgets)
        return shared, cuts[self._rank]

    def _of(self, stage: int) -> list[LayerGroupSpec | None]:
        rows = [stages[stage] for stages in self._by_group]
        states = self._told[stage].states
        specs = [group.spec if group else None for group in rows]
        return [*specs, states.spec] if states else specs


def tell_stages(
    groups: Sequence[DiscoveredGroup], states: DiscoveredStates | None, pool_bytes: int
) -> Stages:
    """Exchange what the stages of this rank's pipeline have."""
    own, parallel = OfStage(tuple(groups), states, pool_bytes), get_parallel()
    if parallel.pp_size == 1:
        return Stages([own], 0)
    return Stages(parallel.pp_group.all_gather_object(own), parallel.pp_rank)


def least_of_stages(number: int) -> int:
    """The smallest of what the stages of this rank's pipeline say."""
    parallel = get_parallel()
    if parallel.pp_size == 1:
        return number
    return min(parallel.pp_group.all_gather_object(number))


def _kind(group: DiscoveredGroup) -> tuple[Any, ...]:
    dims = (group.num_kv_heads, group.head_dim_k, group.head_dim_v, group.latent_dim)
    return (group.spec.dependency, *dims, group.dtype)


def _first_layer(stages: Sequence[DiscoveredGroup | None]) -> int:
    return min(group.spec.layers[0] for group in stages if group)


def _widest(stages: Sequence[DiscoveredGroup | None]) -> LayerGroupSpec:
    return widest([group.spec for group in stages if group])
