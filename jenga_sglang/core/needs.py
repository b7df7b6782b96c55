"""What every group needs of a history, in pages.

`core.dependency` answers for one group and in tokens. Here are the answers for all groups of a pool
at once, remembered, for the same few lengths are asked about again and again. What an encoder made
in front of a text shifts them; a `History` is the needs of all histories that begin with so many of
its pages, so nothing else counts those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Protocol

from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry
from jenga_sglang.core.dependency import Dependency, EncoderTokens, reads_everything
from jenga_sglang.core.hit import longest_hit
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.ranges import Range, intersect, page_ranges, union

REMEMBERED = 1 << 14  # answers about lengths of histories
NOTHING = EncoderTokens(0)


class Held(Protocol):
    """Which pages the groups hold; `core.books.memory.Memory` says it."""

    @property
    def encoder_groups(self) -> list[int]: ...

    def first_missing(self, group: int, virtual: Ids) -> int | None: ...

    def last_held(self, group: int, virtual: Ids) -> int | None: ...


class Needs:
    """What each group depends on, ``dependencies[g]``, and what follows from it."""

    def __init__(self, geometry: Geometry, max_length: int) -> None:
        self.page_size = geometry.page_size
        self.max_length = max_length
        self.dependencies: list[Dependency] = []
        self.most_pages: list[int] = []  # that a request of the greatest length holds at once
        self.retired: set[int] = set()  # groups of rows that were (`core.live_groups`)
        self.of_pages = lru_cache(REMEMBERED)(self._of_pages)
        self.of_hits = lru_cache(REMEMBERED)(self._of_hits)
        self.permanent = lru_cache(REMEMBERED)(self._permanent)
        self._states: set[int] = set()
        for cut in geometry.groups:
            self.add_group(cut)

    def add_group(self, cut: GroupGeometry) -> int:
        """One more group; returns its number."""
        dependency = cut.spec.dependency.effective(self.max_length)
        if cut.spec.is_state:
            self._states.add(len(self.dependencies))
        self.dependencies.append(dependency)
        self.most_pages.append(dependency.peak_pages(self.max_length, self.page_size))
        self._forget()
        return len(self.dependencies) - 1

    def retire_group(self, group: int) -> None:
        """``group`` needs nothing from now on."""
        self.dependencies[group] = NOTHING
        self.most_pages[group] = 0
        self.retired.add(group)
        self._forget()

    def _forget(self) -> None:
        self.of_pages.cache_clear()
        self.of_hits.cache_clear()
        self.permanent.cache_clear()
        self.__dict__.pop("forgetful", None)

    @property
    def groups(self) -> range:
        return range(len(self.dependencies))

    @cached_property
    def forgetful(self) -> list[int]:
        """Groups that let go of pages while a request runs."""
        return [g for g in self.groups if not self.keeps_everything(g)]

    def keeps_everything(self, group: int) -> bool:
        """Whether ``group`` lets go of nothing while a request runs."""
        return reads_everything(self.dependencies[group], self.max_length)

    def of_text(self, group: int, length: int) -> tuple[Range, ...]:
        """The pages of a text of ``length`` tokens that ``group`` still needs."""
        return self.of_pages(group, length, 0)

    def dependency(self, group: int, encoder_pages: int) -> Dependency:
        """What ``group`` needs of a history whose first ``encoder_pages`` an encoder made."""
        return self.dependencies[group].after_encoder(encoder_pages * self.page_size)

    def _of_pages(self, group: int, length: int, encoder_pages: int) -> tuple[Range, ...]:
        return page_ranges(self.dependency(group, encoder_pages).needed(length), self.page_size)

    def _permanent(self, group: int, encoder_pages: int) -> tuple[Range, ...]:
        """The pages that ``group`` needs of every history that has them, behind so many pages of an
        encoder, which count in its length: losing one puts all that follows out of reach."""
        if group in self._states:
            return ()
        return self._of_pages(group, self.max_length, encoder_pages)

    def _of_hits(
        self, group: int, num_pages: int, encoder_pages: int, *lengths: int
    ) -> list[Range]:
        everything = [Range(0, num_pages)]
        ranges = intersect(self.permanent(group, encoder_pages), everything)
        if ranges == everything:
            return ranges
        for n in lengths:
            ranges += self.of_pages(group, n // self.page_size * self.page_size, encoder_pages)
        return union(ranges)


@dataclass(frozen=True, slots=True)
class History:
    """The needs of histories whose first ``encoder_pages`` pages an encoder made."""

    needs: Needs
    held: Held
    encoder_pages: int

    def pages(self, group: int, length: int) -> tuple[Range, ...]:
        """The pages of a history of ``length`` tokens that ``group`` still needs."""
        return self.needs.of_pages(group, length, self.encoder_pages)

    def held_pages(self, length: int) -> list[list[Range]]:
        """`pages`, of every group."""
        of_pages, encoder_pages = self.needs.of_pages, self.encoder_pages
        return [list(of_pages(g, length, encoder_pages)) for g in self.needs.groups]

    def pages_of_hits(self, group: int, num_pages: int, lengths: Sequence[int]) -> list[Range]:
        """What hits of ``lengths`` tokens, and every longer history, need of the first
        ``num_pages`` pages of one."""
        return self.needs.of_hits(group, num_pages, self.encoder_pages, *lengths)

    def longest_hit(self, pages: Ids) -> tuple[int, int | None]:
        """The most of ``pages`` of a history that every group can continue from, and the group
        that cut it last; see `core.hit`."""
        return longest_hit(
            len(pages),
            self.needs.page_size,
            self._dependencies(),
            self.pages,
            partial(self._refusal, pages),
        )

    def _dependencies(self) -> Sequence[Dependency]:
        if not self.encoder_pages and not self.held.encoder_groups:
            return self.needs.dependencies
        return [self.needs.dependency(g, self.encoder_pages) for g in self.needs.groups]

    def _refusal(self, pages: Ids, group: int, wanted: Range) -> int | None:
        """None where ``group`` holds the ``wanted`` ones of ``pages``, else how many of them may
        be a hit at most."""
        missing = self.held.first_missing(group, pages[wanted.start : wanted.stop])
        if missing is None:
            return None
        num_pages = wanted.start + missing
        if self.needs.dependencies[group].needs_last:
            # The next prefix that ends with a page that is held, or the one without any text.
            last = self.held.last_held(group, pages[:num_pages])
            num_pages = min(num_pages, self.encoder_pages) if last is None else last + 1
        return num_pages
