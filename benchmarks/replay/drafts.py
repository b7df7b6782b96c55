"""A model that drafts beside the one that is served: its layers, its cost, its luck."""

import random
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.replay.geometry import Geometry, Lengths
from benchmarks.replay.recorder import Step


@dataclass(frozen=True)
class Drafting:
    """``steps`` drafts of each request in every step, made one after the other by a model with the
    layers of ``draft`` and verified together by ``target``. A draft is right with the probability
    ``acceptance`` where all before it are.

    As SGLang runs it, under the name ``algorithm``: all but the last draft take a pass of the draft
    model, and what was verified another one, as a prompt does.
    """

    target: Geometry
    draft: Geometry
    steps: int
    acceptance: float
    algorithm: str = "STANDALONE"

    @classmethod
    def of(
        cls,
        target: Geometry,
        draft: Geometry,
        steps: int,
        acceptance: float,
        algorithm: str = "STANDALONE",
    ) -> "Drafting":
        """Both models shrunk by one factor."""
        both = Geometry(
            f"{target.name} + {draft.name}",
            target.groups + draft.groups,
            target.order + tuple(len(target.groups) + group for group in draft.order),
            target.cost,
        )
        factor = both.shrink_factor
        target, draft = replace(target, factor=factor), replace(draft, factor=factor)
        return cls(target, draft, steps, acceptance, algorithm)

    @property
    def memory(self) -> Geometry:
        """The layers of both."""
        groups = self.target.groups + self.draft.groups
        order = self.target.order + tuple(len(self.target.groups) + g for g in self.draft.order)
        return replace(
            self.target, name=f"{self.target.name} + {self.draft.name}", groups=groups, order=order
        )

    @property
    def verified_tokens(self) -> int:
        """Of one request in one step: the last that is known, and all drafts."""
        return self.steps + 1

    def accepted(self, rid: str, length: int) -> int:
        """How many drafts are right behind ``length`` tokens of a request, on every backend."""
        rng = random.Random(f"{rid} {length}")
        return next((n for n in range(self.steps) if rng.random() >= self.acceptance), self.steps)

    def step_seconds(self, step: Step) -> float:
        """What a step of both models takes."""
        lengths = np.array(step.kv_lengths, dtype=np.int64)
        queries = len(step.decodes) * self.verified_tokens
        seconds = self.target.cost.step_seconds(
            step.prefill_tokens, queries, self.target.kv_bytes_read(lengths)
        )
        return seconds + self._draft_seconds(step, lengths, queries)

    def _draft_seconds(self, step: Step, lengths: Lengths, queries: int) -> float:
        cost, kv_bytes = self.draft.cost, self.draft.kv_bytes_read(lengths)
        if not step.decodes:
            return cost.step_seconds(step.prefill_tokens, 0, kv_bytes)
        one_draft = cost.step_seconds(0, len(step.decodes), kv_bytes)
        return (self.steps - 1) * one_draft + cost.step_seconds(0, queries, kv_bytes)
