"""A draft model that knows the answers, and is wrong where it was planned."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from e2e.answers import Answer
from e2e.drafting import meet_drafts
from e2e.stream import Request


@dataclass(frozen=True)
class Oracle:
    """``texts[n]`` are prompt and answer of request n; drafts come ``steps`` at a time."""

    texts: Sequence[Sequence[int]]
    steps: int
    seed: int = 0

    def right(self, number: int, length: int) -> int:
        """How many drafts are right that request ``number`` gets behind ``length`` tokens: the last
        of its tokens is known by then, and no token behind its answer is."""
        planned = random.Random(f"{self.seed} {number} {length}").randint(0, self.steps)
        return max(0, min(planned, len(self.texts[number]) - 1 - length))

    def drafts(self, number: int, length: int) -> list[int]:
        """What follows the token at place ``length``, and from a place on something else. An
        overlapped server asks once more when a request has got its answer."""
        drafts = [*self.texts[number][length + 1 :], *[0] * self.steps][: self.steps]
        return [
            draft if place < self.right(number, length) else draft ^ 1
            for place, draft in enumerate(drafts)
        ]

    def accepted(self, requests: Sequence[Request]) -> list[Counter[int]]:
        """How many steps of each request accept how many drafts, if none is computed twice."""
        return [Counter(self._steps(n, len(r.prompt))) for n, r in enumerate(requests)]

    def _steps(self, number: int, length: int) -> Iterator[int]:
        while length < len(self.texts[number]) - 1:
            right = self.right(number, length)
            yield right
            length += right + 1

    def install(self) -> None:
        """Let SGLang's draft worker run as it is, and put these drafts in the place of its own."""

        def put(number: int, length: int, drafts: torch.Tensor) -> None:
            drafts.copy_(drafts.new_tensor(self.drafts(number, length)))

        meet_drafts(put)


def oracle_of(requests: Sequence[Request], answers: Sequence[Answer], steps: int) -> Oracle:
    """One that knows these answers."""
    pairs = zip(requests, answers, strict=True)
    return Oracle([[*request.prompt, *answer.tokens] for request, answer in pairs], steps)
