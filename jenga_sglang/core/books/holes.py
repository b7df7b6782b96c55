"""Free small pages inside large pages that one group owns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jenga_sglang.core.books.corrupt import agree, none


@dataclass
class Holes:
    """One group's holes: ``in_large[p]`` are those of large page ``p``, and ``of_request[r]`` the
    large pages with holes that were taken for request ``r``. No entry is empty."""

    in_large: dict[int, list[int]] = field(default_factory=dict)
    of_request: dict[int, dict[int, None]] = field(default_factory=dict)

    def num_of(self, request: int) -> int:
        """Holes in large pages that were taken for ``request``."""
        if not (own := self.of_request.get(request)):
            return 0
        return sum(len(self.in_large[large]) for large in own)

    def add(self, large: int, request: int, small: list[int]) -> None:
        """``small`` pages of ``large``, which was taken for ``request``, are free now."""
        self.in_large.setdefault(large, []).extend(small)
        self.of_request.setdefault(request, {})[large] = None

    def take(self, large: int, request: int, count: int) -> list[int]:
        """Up to ``count`` holes of ``large``, which are none any more; the newest first to go."""
        holes = self.in_large[large]
        split = max(0, len(holes) - count)
        taken = holes[split:]
        del holes[split:]
        if not holes:
            self.drop(large, request)
        return taken

    def drop(self, large: int, request: int) -> None:
        """``large`` has no holes any more, if it had any."""
        if self.in_large.pop(large, None) is None:
            return
        own = self.of_request[request]
        del own[large]
        if not own:
            del self.of_request[request]

    def check(self, what: str, per_large: int, missing: Mapping[int, int]) -> None:
        """Raise `CorruptPool` unless just the large pages ``missing`` some of their ``per_large``
        small pages have holes, as many and inside themselves."""
        unlisted = {*missing} ^ {*self.in_large}
        none(f"{what}: large pages with holes that are not listed", unlisted)
        of_requests = [large for pages in self.of_request.values() for large in pages]
        agree(f"{what}: large pages with holes", sorted(of_requests), sorted(self.in_large))
        for large, holes in self.in_large.items():
            agree(f"{what}: holes in large page {large}", len(holes), missing[large])
            agree(f"{what}: distinct holes in large page {large}", len({*holes}), missing[large])
            outside = [p for p in holes if p // per_large != large]
            none(f"{what}: holes of large page {large} that lie elsewhere", outside)
