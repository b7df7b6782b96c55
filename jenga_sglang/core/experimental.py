"""Dependencies that no model of SGLang has yet."""

from __future__ import annotations

from dataclasses import dataclass

from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ranges import Range, intersect, subtract


@dataclass(frozen=True)
class Switches(Dependency):
    """One dependency for histories up to ``position`` tokens, another for longer ones, while the
    request runs: everything until position P and a window after it, for one.

    Legal where ``then`` needs nothing that ``first`` has let go by ``position``; anything else is
    refused with ``ValueError``.
    """

    position: int
    first: Dependency
    then: Dependency

    def __post_init__(self) -> None:
        if self.position < 0:
            raise ValueError(f"expected position >= 0, got {self}")
        asked = intersect(self.then.needed(self.position + 1), [Range(0, self.position)])
        if gone := subtract(asked, self.first.needed(self.position)):
            raise ValueError(f"{self}: token {gone[0].start} is let go and then needed again")

    def needed(self, length: int) -> tuple[Range, ...]:
        return (self.first if length <= self.position else self.then).needed(length)

    def visible(self, position: int) -> tuple[Range, ...]:
        return (self.first if position <= self.position else self.then).visible(position)

    def peak_tokens(self, length: int) -> int:
        before = self.first.peak_tokens(min(length, self.position))
        return before if length <= self.position else max(before, self.then.peak_tokens(length))

    def effective(self, max_length: int) -> Dependency:
        return self.first.effective(max_length) if self.position >= max_length else self

    def whole(self, length: int) -> int:
        return (self.first if length <= self.position else self.then).whole(length)

    def __str__(self) -> str:
        return f"{self.first} to {self.position}, then {self.then}"
