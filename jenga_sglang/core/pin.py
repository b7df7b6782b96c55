"""Records of the manager: a prefix hit, the pages of one running request, and counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from jenga_sglang.core.ids import Ids
from jenga_sglang.core.ranges import Range
from jenga_sglang.core.tree import Path


@dataclass(frozen=True)
class Hit:
    """A prefix that every group can continue from. ``matched_pages`` is what the tree knows of
    the history at all; the difference was cut off by the group ``cut_by``."""

    path: Path
    matched_pages: int
    cut_by: int | None


@dataclass(frozen=True)
class StateCopy:
    """A recurrent state of ``group`` to be copied: small pages, one a stripe. Small page 0 is the
    state before the first token, all zero."""

    group: int
    source: Ids
    target: Ids


@dataclass(eq=False)
class Pin:
    """The pages of one running request. ``held[g]`` are the page ranges pinned in group g."""

    number: int
    pages: Ids
    num_pages: int
    tree_pages: int
    held: list[list[Range]]
    hit: Hit
    path: Path | None = None  # of the row's beginning, as last seen in the tree
    length: int = 0  # tokens in the row; the last page may have room for more
    slid_pages: int = 0  # windows have slid to here
    # Computed to here for a `checkpoint` to publish, and where windows will slide once it has.
    to_publish_pages: int = 0
    waiting_slide_pages: int = 0
    touched: bool = False
    # Pinned as well, but given up before a reservation fails: what other requests may ask for.
    held_for_others: list[list[Range]] = field(default_factory=list)
    # Lengths at which this request used a hit or wants one kept: refreshed together, to its end.
    kept: list[int] = field(default_factory=list)
    # Those of them that more than one request has come by; the rest are guesses.
    shared: list[int] = field(default_factory=list)
    # The known history goes on beyond the hit, and the request has not got there yet.
    branch_ahead: bool = False
    # Groups of KV rows that there were when the request began: it has pages in these, the pages
    # that an encoder made in the latter and all others in the former.
    groups: tuple[int, ...] = ()
    encoder_groups: tuple[int, ...] = ()
    encoder_pages: int = 0  # how many of the first pages of the history an encoder made
    # Virtual page of the working states (`core.states`), and what the next step copies: before it,
    # and as soon as it has computed so many tokens.
    slot: int = 0
    # The private page whose checkpoint moves along with the answer; 0 is none.
    answer_page: int = 0
    starts: list[StateCopy] = field(default_factory=list)
    saves: list[tuple[int, StateCopy]] = field(default_factory=list)

    def parts(self, pages: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """How the next ``pages`` pages of the history divide: (pages, groups that have them)."""
        encoder = min(pages, self.encoder_pages - self.num_pages)
        if encoder <= 0:
            return ((pages, self.groups),)
        return (encoder, self.encoder_groups), (pages - encoder, self.groups)

    @property
    def row(self) -> Ids:
        """Virtual pages of the request's history, first page first."""
        return self.pages[: self.num_pages]

    def holds_last_page(self, group: int) -> bool:
        ranges = self.held[group]
        return bool(ranges) and ranges[-1].stop == self.num_pages

    def append(self, pages: Ids) -> None:
        """Go on with private ``pages``."""
        stop = self.num_pages + len(pages)
        self._make_place(stop)
        self.pages[self.num_pages : stop] = pages
        for count, groups in self.parts(len(pages)):
            if count:
                self._hold(self.num_pages, self.num_pages + count, groups)
                self.num_pages += count

    def append_one(self, page: int) -> None:
        """Go on with a private page of text."""
        first, stop = self.num_pages, self.num_pages + 1
        self._make_place(stop)
        self.pages[first] = page
        self._hold(first, stop, self.groups)
        self.num_pages = stop

    def _make_place(self, pages: int) -> None:
        if pages > len(self.pages):
            grown = np.zeros(max(pages, 2 * len(self.pages), 8), np.int64)
            grown[: self.num_pages] = self.row
            self.pages = grown

    def _hold(self, start: int, stop: int, groups: tuple[int, ...]) -> None:
        for g in groups:
            ranges = self.held[g]
            if ranges and ranges[-1].stop == start:
                ranges[-1] = Range(ranges[-1].start, stop)
            else:
                ranges.append(Range(start, stop))


@dataclass
class Counters:
    """What happened so far, in pages unless the name says otherwise."""

    lost_hit_tokens: Counter[int] = field(default_factory=Counter)  # by the group that cut
    evicted: Counter[int] = field(default_factory=Counter)  # by group, for want of room
    cascaded: Counter[int] = field(default_factory=Counter)  # by group, out of reach
    refused_reservations: int = 0
    saved_checkpoints: int = 0
    skipped_checkpoints: int = 0  # of recurrent states, for want of room
    prompt_tokens: int = 0  # of all prompts computed, again after a retraction
    hit_tokens: int = 0  # of those, what a hit spared
