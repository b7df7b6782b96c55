"""A running request: its row of pages, what it holds of them, and how it moves on.

A request's row, in pages, with who owns what::

    [0, tree_pages)          in the tree, pinned where a group still needs them
    [tree_pages, num_pages)  private

Its first ``length`` tokens are there for good. Behind them is the tail: what is left of the last
page, and whole pages where a model drafts tokens that may not be accepted.

What is here changes the request alone; whoever calls also tells the books (`core.books.memory`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jenga_sglang.core.books.tree import Path
from jenga_sglang.core.groups import Parts, Shared
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.needs import History
from jenga_sglang.core.ranges import Range, subtract, union

FIRST_DECODE_STEPS = 128.0  # of a request, before any has finished
LAST_WEIGHT = 1 / 64  # of the last request in the running mean


@dataclass(frozen=True)
class Hit:
    """A prefix that every group can continue from. ``matched_pages`` is what the tree knows of
    the history at all; the difference was cut off by the group ``cut_by``. ``whole`` are stretches
    of the prompt's tokens that one step computes to their ends (`core.whole`), in order."""

    path: Path
    matched_pages: int
    cut_by: int | None
    whole: tuple[Range, ...] = ()

    @property
    def lost_pages(self) -> int:
        """How much of what the tree knows of the history is no hit."""
        return self.matched_pages - self.path.num_pages

    @property
    def encoder_pages(self) -> int:
        """How many of the history's first pages an encoder made."""
        return self.path.node.encoder_pages


@dataclass(frozen=True)
class StateCopy:
    """A recurrent state of ``group`` to be copied: small pages, one a stripe. Small page 0 is the
    state before the first token, all zero."""

    group: int
    source: Ids
    target: Ids


class Growth(NamedTuple):
    """How the next ``pages`` pages of ``running`` are backed, from page ``first`` of its row on: in
    ``parts``, and those that pass (`core.passing`), counted from the first, by small pages that are
    ``shared``."""

    running: Running
    first: int
    pages: int
    parts: Parts
    shared: Shared = ()


@dataclass(eq=False, slots=True)
class Running:
    """One running request. ``held[g]`` are the page ranges pinned in group g; it has pages in
    ``groups``, those of rows that there were when it began, and the pages that an encoder made in
    ``encoder_groups``."""

    number: int
    hit: Hit
    history: History
    pages: Ids  # the row, and room behind it
    held: list[list[Range]]
    groups: tuple[int, ...]
    encoder_groups: tuple[int, ...]
    # The known history goes on beyond the hit, and the request has not got there yet.
    branch_ahead: bool
    encoder_pages: int = field(init=False)  # how many of the history's first an encoder made
    num_pages: int = field(init=False)
    tree_pages: int = field(init=False)
    length: int = field(init=False)  # tokens in the row for good; its pages may have room for more
    path: Path = field(init=False)  # of the row's beginning, as last seen in the tree
    slid_pages: int = 0  # windows have slid to here
    # Computed to here for `Manager.publish`, and where windows will slide once it is published.
    to_publish_pages: int = 0
    waiting_slide_pages: int = 0
    touched: bool = False
    priority: int = 0
    # Pinned as well, but given up before a reservation fails: what other requests may ask for.
    held_for_others: list[list[Range]] = field(init=False)
    # Lengths at which this request used a hit or wants one kept: refreshed together, to its end.
    kept: list[int] = field(default_factory=list)
    # Those of them that more than one request has come by; the rest are guesses.
    shared: list[int] = field(default_factory=list)
    # Virtual page of the working states (`core.recurrent`), and what the next step copies: before
    # it, and as soon as it has computed so many tokens.
    state_page: int = 0
    starts: list[StateCopy] = field(default_factory=list)
    saves: list[tuple[int, StateCopy]] = field(default_factory=list)
    # Pages after which a snapshot was left by guess: it is not refreshed with the others.
    guessed_pages: list[int] = field(default_factory=list)
    # The private page whose snapshot moves along with the answer; 0 is none.
    answer_page: int = 0

    # How the pages are backed that have been reserved for it, where some pass; and those that do
    # in the step that has been prepared, by group.
    growth: Growth | None = None
    passing: list[tuple[int, Ids]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.encoder_pages = self.history.encoder_pages
        self.num_pages = self.tree_pages = len(self.pages)
        self.length = len(self.pages) * self.history.needs.page_size
        self.path = Path(self.hit.path.node, self.hit.matched_pages)
        self.held_for_others = [[] for _ in self.held]

    @property
    def row(self) -> Ids:
        """Virtual pages of the request's history, first page first."""
        return self.pages[: self.num_pages]

    def serves(self, priority: int) -> None:
        """The request has this priority; the highest is served first, and kept longest."""
        self.priority = priority

    def of(self, ranges: Sequence[Range]) -> list[Ids]:
        """The virtual pages of each of the page ``ranges``."""
        pages = self.pages
        return [pages[start:stop] for start, stop in ranges]

    def holds_last_page(self, group: int) -> bool:
        ranges = self.held[group]
        return bool(ranges) and ranges[-1].stop == self.num_pages

    def parts(self, pages: int) -> Parts:
        """How the next ``pages`` pages of the history divide: (pages, groups that have them)."""
        encoder = self.encoder_pages - self.num_pages
        if encoder <= 0:
            return ((pages, self.groups),)
        encoder = min(encoder, pages)
        return (encoder, self.encoder_groups), (pages - encoder, self.groups)

    def next_growth(self, pages: int) -> Growth:
        """How the next ``pages`` pages are backed: as they were reserved; asked once."""
        growth, self.growth = self.growth, None
        if growth is not None and (growth.first, growth.pages) == (self.num_pages, pages):
            return growth
        return Growth(self, self.num_pages, pages, self.parts(pages))

    # -- growing ------------------------------------------------------------------------------

    def grow(
        self, pages: Ids, length: int, *, publish: bool = False, parts: Parts | None = None
    ) -> None:
        """Go on with private ``pages``, to ``length`` tokens, which are to be published or not;
        ``parts`` where not every group has all of them."""
        stop = self.num_pages + len(pages)
        if stop > len(self.pages):
            self._make_place(stop)
        self.pages[self.num_pages : stop] = pages
        for count, groups in self.parts(len(pages)) if parts is None else parts:
            if count:
                self._hold(self.num_pages, self.num_pages + count, groups)
                self.num_pages += count
        self.length = length
        if publish:
            self.to_publish_pages = length // self.history.needs.page_size

    def grow_by_token(self, page: int) -> None:
        """Go on by one token of text, in a private page of its own."""
        first, stop = self.num_pages, self.num_pages + 1
        if stop > len(self.pages):
            self._make_place(stop)
        self.pages[first] = page
        self._hold(first, stop, self.groups)
        self.num_pages = stop
        self.length += 1

    def grow_within_pages(self, length: int) -> None:
        """``length`` tokens are in the row now, for which its pages have room."""
        self.length = length

    def _make_place(self, pages: int) -> None:
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

    def add_group(self) -> None:
        """A group was born, of which the request has nothing."""
        self.held.append([])
        self.held_for_others.append([])

    # -- sliding ------------------------------------------------------------------------------

    def slide_target(self, num_pages: int) -> int:
        """How far windows may slide when ``num_pages`` are computed; notes what has to wait, for it
        is to be published and is not yet."""
        if self.to_publish_pages <= self.tree_pages or num_pages <= self.tree_pages:
            return num_pages
        if self.waiting_slide_pages and num_pages > self.waiting_slide_pages:
            return num_pages
        self.waiting_slide_pages = num_pages
        return self.tree_pages

    def begin_slide(self, num_pages: int) -> bool:
        """Whether a history of ``num_pages`` pages has anything to let go of; it has slid then."""
        if num_pages >= self.waiting_slide_pages:
            self.waiting_slide_pages = 0
        if num_pages <= self.slid_pages:
            return False
        self.slid_pages = num_pages
        if num_pages > self.tree_pages:
            self.to_publish_pages = 0
        return True

    def let_go(self, group: int, needed: Sequence[Range]) -> list[Range]:
        """The pages of ``group`` that windows have slid past, all but those ``needed``; the request
        holds them no more."""
        self.held[group], gone = _divide(self.held[group], needed, self.slid_pages)
        return gone

    # -- what is for others -------------------------------------------------------------------

    def hold_for_others(self, group: int, ranges: Sequence[Range]) -> None:
        """Keep pages of ``group`` pinned that the request itself needs no more."""
        self.held_for_others[group] = union([*self.held_for_others[group], *ranges])

    def give_up_for_others(self, group: int, ranges: Sequence[Range]) -> None:
        """Hold ``ranges`` for others no more."""
        self.held_for_others[group] = subtract(self.held_for_others[group], ranges)

    def give_up_all_for_others(self) -> list[list[Range]]:
        """Hold nothing for others any more; what it was, by group."""
        self.answer_page = 0
        held, self.held_for_others = self.held_for_others, [[] for _ in self.held]
        return held

    # -- publishing ---------------------------------------------------------------------------

    def published(self, path: Path, num_pages: int) -> None:
        """The first ``num_pages`` pages of the row are in the tree, along ``path``."""
        self.path = path
        self.tree_pages = max(self.tree_pages, num_pages)

    def merged(self, first: int, pages: Ids) -> None:
        """The row goes on with ``pages`` from page ``first`` on, the tree's and its own."""
        self.pages[first : first + len(pages)] = pages

    def reached_branch(self, num_pages: int) -> bool:
        """Whether the request is past the point, with ``num_pages`` in the tree, at which it left a
        known history; asked once."""
        reached = self.branch_ahead and self.hit.matched_pages <= num_pages
        self.branch_ahead &= not reached
        return reached

    def keep_hit(self, *lengths: int, shared: bool = False) -> None:
        """Refresh what hits of ``lengths`` tokens need, as long as the request runs."""
        self.kept += lengths
        if shared:
            self.shared += lengths

    # -- recurrent states ---------------------------------------------------------------------

    def take_starts(self) -> list[StateCopy]:
        """What is to be copied before the next step; it is the caller's to do now."""
        starts, self.starts = self.starts, []
        return starts

    def take_saves(self) -> list[tuple[int, StateCopy]]:
        """What the next step copies, each as soon as it has computed so many tokens of the row;
        it is the caller's to do now."""
        saves, self.saves = self.saves, []
        return saves

    def follow_answer(self, page: int) -> None:
        """The snapshot of ``page`` moves along with the answer; 0 for none."""
        self.answer_page = page

    def end(self) -> None:
        """The request has no pages any more."""
        self.num_pages = self.tree_pages = self.length = 0


def _divide(
    held: list[Range], needed: Sequence[Range], front: int
) -> tuple[list[Range], list[Range]]:
    """``held`` page ranges, those that stay and those that go: what is ``needed`` stays, and all
    from page ``front`` on."""
    if len(needed) > 1 or not needed or needed[0].stop != front:
        gone = subtract(held, union([*needed, Range(front, max(front, held[-1].stop))]))
        return subtract(held, gone), gone
    # A window that moves with the front, as nearly all do.
    start = needed[0].start
    first, stop = held[0]
    if first >= start:
        return held, []
    if len(held) == 1 and start < stop:
        return [Range(start, stop)], [Range(first, start)]
    gone = [Range(a, min(b, start)) for a, b in held if a < start]
    return [Range(max(a, start), b) for a, b in held if b > start], gone


@dataclass
class Counters:
    """What happened so far, in pages unless the name says otherwise."""

    lost_hit_tokens: Counter[int] = field(default_factory=Counter)  # by the group that cut
    evicted: Counter[int] = field(default_factory=Counter)  # by group, for want of room
    cascaded: Counter[int] = field(default_factory=Counter)  # by group, out of reach
    refused_reservations: int = 0
    saved_snapshots: int = 0
    skipped_snapshots: int = 0  # of recurrent states, for want of room
    prompt_tokens: int = 0  # of all prompts computed, again after a retraction
    hit_tokens: int = 0  # of those, what a hit spared
    awaited_tokens: int = 0  # of prompts, that requests waited for another to compute
    # Of requests that fit, in passes of the scheduler (`core.guard`); and what they waited for.
    kept_out_passes: int = 0
    longest_kept_out_passes: int = 0
    predicted_tokens: int = 0  # hits for whose sake somebody was kept out, once it is known
    missed_tokens: int = 0  # what of them did not come true
    stopped_predicting: int = 0  # times
    mean_decode_steps: float = FIRST_DECODE_STEPS

    def finished(self, decode_steps: int) -> None:
        """A request has ended by itself after so many steps: one a token, fewer with drafts."""
        self.mean_decode_steps += LAST_WEIGHT * (decode_steps - self.mean_decode_steps)
