"""How long copies and steps take here, for `core.prices`.

A step is timed from when its pages are placed to when the next pass begins, in the time of whoever
copies and computes: on a CPU all of it has been computed by then, and of a GPU's stream the step is
what lies between. Every rank has a clock of its own, so what they learn is the slowest one's time,
asked for after the same number of steps everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.streams import HostWork
from jenga_sglang.core.prices import Prices, Steps

ASK_EVERY_STEPS = 32  # one small exchange between ranks


@dataclass(slots=True)
class _Step:
    """What a step computes, and from which mark of the clock to which."""

    began: Any
    ended: Any = None
    prompt_tokens: int = 0
    decodes: int = 0


class Measured:
    """Notes what takes how long, and tells ``prices`` now and then. Of ``stages`` of a pipeline it
    times no steps: each takes another time, and they have no pass in common to agree in."""

    def __init__(
        self, prices: Prices, agreement: Agreement, clock: HostWork, *, stages: int = 1
    ) -> None:
        self._prices, self._agreement, self._clock = prices, agreement, clock
        self._times_steps = stages == 1
        self._bytes = 0
        self._copies: list[tuple[Any, Any]] = []  # from which mark of the clock to which
        self._steps: list[_Step] = []
        self._step: _Step | None = None  # since this pass has begun

    @contextmanager
    def copying(self, num_bytes: int) -> Iterator[None]:
        """Meanwhile so many bytes are copied between the tiers."""
        began = self._clock.mark()
        yield
        self._bytes += num_bytes
        self._copies.append((began, self._clock.mark()))

    def step_begins(self, *, prompt_tokens: int = 0, decodes: int = 0) -> None:
        """The pass has placed so many tokens of prompts, or so many requests that decode: the step
        computes them, perhaps both."""
        if not self._times_steps:
            return
        step = self._step
        # Another of the same kind, where nobody has said that a pass begins: the first is lost.
        if step is None or (step.decodes if decodes else step.prompt_tokens):
            self._step = step = _Step(self._clock.mark())
        step.prompt_tokens += prompt_tokens
        step.decodes += decodes

    def pass_begins(self) -> None:
        """The step before has ended, or will have when the stream gets here."""
        if self._step is None:
            return
        self._step.ended = self._clock.mark()
        self._steps.append(self._step)
        self._step = None
        if len(self._steps) > ASK_EVERY_STEPS:
            # But for the last one: to ask when that has ended would be to wait for it.
            steps, self._steps = self._steps[:-1], self._steps[-1:]
            self._tell(steps)

    def _tell(self, steps: list[_Step]) -> None:
        prefills, copy_ns = Steps(), self._ns(self._copies)
        decoded: dict[int, list[tuple[int, int]]] = {}
        for step in steps:
            ns = self._clock.ns_between(step.began, step.ended)
            if step.prompt_tokens:
                prefills.learn(Steps(1, step.prompt_tokens, step.decodes, ns))
            else:
                decoded.setdefault(step.decodes.bit_length(), []).append((step.decodes, ns))
        decodes = {key: _typical(decoded[key]) for key in sorted(decoded)}
        own = [prefills.ns, copy_ns, *[steps.ns for steps in decodes.values()]]
        agreed = [-ns for ns in self._agreement.least(*[-ns for ns in own])]
        prefills.ns, copy_ns = agreed[:2]
        for kind, ns in zip(decodes.values(), agreed[2:], strict=True):
            kind.ns = ns
        self._prices.copies.learn(self._bytes, copy_ns)
        self._prices.prompts.learn(prefills.prompt_tokens, prefills.ns)
        self._prices.learn_steps(prefills, decodes)
        self._bytes, self._copies = 0, []

    def _ns(self, marks: list[tuple[Any, Any]]) -> int:
        return sum(self._clock.ns_between(*pair) for pair in marks)


def _typical(steps: list[tuple[int, int]]) -> Steps:
    """Steps that only decode, of one kind, in the time of their median: one that waited for a
    kernel to be compiled would outweigh all others."""
    count = len(steps)
    ns = count * median_low([ns for _, ns in steps])
    return Steps(count, 0, sum([decodes for decodes, _ in steps]), ns)
