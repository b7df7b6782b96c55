"""Whether a request fits, in large pages: the arithmetic behind "yes", "not now" and "never"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jenga_sglang.core.manager import Manager


@dataclass(frozen=True)
class Weighing:
    """What a request asks for against what there is, in large pages.

    ``asked[g]`` are the large pages that group g needs for it; ``promised`` those that running
    requests may still come to need; ``available`` those that are free or hold only cached pages.
    """

    asked: tuple[int, ...]
    promised: int
    available: int

    @property
    def missing(self) -> int:
        """Large pages short; 0 when the request fits."""
        return max(0, self.promised + sum(self.asked) - self.available)


def weigh(manager: Manager, promised: Sequence[int], pages: Sequence[int]) -> Weighing:
    """Weigh ``pages`` new pages per group, beside ``promised`` pages per group.

    Nothing is missing exactly when `Manager.can_serve` says that both together fit.
    """
    books = manager.memory.large
    before = _large_pages(manager, promised)
    both = _large_pages(manager, [a + b for a, b in zip(promised, pages, strict=True)])
    return Weighing(
        asked=tuple(b - a for a, b in zip(before, both, strict=True)),
        promised=sum(before),
        available=books.num_free + sum(books.num_reclaimable),
    )


def _large_pages(manager: Manager, pages: Sequence[int]) -> list[int]:
    """Large pages that each group would have to take, its own usable pages spent first."""
    books = manager.memory.large
    return [
        -(-max(0, n * s - books.num_usable(g)) // books.small_per_large[g])
        for g, (n, s) in enumerate(zip(pages, manager.memory.stripes, strict=True))
    ]
