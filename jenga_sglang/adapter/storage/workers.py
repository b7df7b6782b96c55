"""The two threads between host memory and storage: one reads, one writes, each in order.

Neither decides anything. What the reader finds is agreed upon by all ranks before anybody acts on
it; what the writer writes or drops is nobody's business but this rank's storage.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.storage.page_store import PageStore, keys_of
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.fetching import Exists, Fetch, Known
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.needs import Needs

logger = logging.getLogger(__name__)

Length = Callable[[int], int]

BATCH_PAGES = 128  # of one question whether they are there


@dataclass(eq=False)
class Prefetch:
    """What storage has of one request's prompt, on its way up. ``held`` is what the tiers had of
    it when it was asked for, by group and page."""

    handle: Any
    namespace: Any
    tokens: Tokens
    held: list[Any]
    num_pages: int  # that may be a hit with what has come; before anything has, at most
    known_pages: int  # that were a hit without storage
    # That may be a hit once what has not failed to come has come as well.
    possible_pages: int = 0
    cancelled: bool = False
    # Nobody waits for the reader any more: it writes to no page of the host.
    abandoned: bool = False
    waits_since: float | None = None
    digests: list[str] = field(default_factory=list)  # of the pages, once the reader has seen it
    fetch: Fetch | None = None
    # By group and page: what storage has said to have, or not to have; what has been read.
    exists: dict[tuple[int, int], bool] = field(default_factory=dict)
    came: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class Work:
    """``pages`` of each group to be read into small pages of the host, shape (pages, stripes); none
    for the question what there is."""

    prefetch: Prefetch
    pages: list[Ids]
    places: list[Ids]


@dataclass
class Traffic:
    """Pages of tokens by group, since the start, whatever was attached meanwhile."""

    written: Counter[int] = field(default_factory=Counter)
    read: Counter[int] = field(default_factory=Counter)
    not_written: Counter[int] = field(default_factory=Counter)  # no more in the host, or failed
    not_read: Counter[int] = field(default_factory=Counter)
    hit_tokens: int = 0  # that the tiers above could not have given


class Reader:
    """Looks for prefetches and reads them, one after the other. ``digests(prefetch)`` are those of
    its pages, ``pages(group)`` the host's rows of a group: (small pages, bytes) uint8."""

    def __init__(
        self,
        store: PageStore,
        needs: Needs,
        tags: list[str],
        agreement: Agreement,
        digests: Callable[[Prefetch], list[str]],
        pages: Callable[[int], torch.Tensor],
        traffic: Traffic,
    ) -> None:
        self._store, self._needs, self._tags = store, needs, tags
        self._agreement, self._digests, self._pages = agreement, digests, pages
        self._traffic = traffic
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.done: deque[Prefetch] = deque()
        # Held while a page is copied into the host, and by whoever takes those pages away.
        self.copying = threading.Lock()
        self._answered, self._is_busy = time.monotonic(), False
        self._thread = threading.Thread(target=self._run, name="jenga-storage-read", daemon=True)
        self._thread.start()

    def look(self, prefetch: Prefetch) -> None:
        """Find out how many pages may be a hit with what storage has."""
        self._put(Work(prefetch, [], []))

    def read(self, prefetch: Prefetch, pages: list[Ids], places: list[Ids]) -> None:
        """Read ``pages`` of each group into ``places``."""
        self._put(Work(prefetch, pages, places))

    def _put(self, work: Work) -> None:
        if not self._is_busy and self._queue.empty():
            self._answered = time.monotonic()
        self._queue.put(work)

    @property
    def silent_seconds(self) -> float:
        """Since the backend has answered last. Of use to whoever waits for an answer."""
        return time.monotonic() - self._answered

    def stop(self, seconds: float | None) -> bool:
        """End the thread after what it has been told; whether it has ended after ``seconds``."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            self._is_busy, prefetch = True, work.prefetch
            came: Length = _nothing
            possible: Length = _nothing
            try:
                came, possible = self._read(work) if work.pages else self._look(prefetch)
            except Exception:
                logger.exception("Storage: reading a prefix failed")
            # Whatever happened here, every rank takes part in the agreement.
            most = prefetch.num_pages
            prefetch.num_pages = self._agreement.longest(came, most)
            prefetch.possible_pages = self._agreement.longest(possible, most)
            self.done.append(prefetch)
            self._is_busy = False

    def _look(self, prefetch: Prefetch) -> tuple[Length, Length]:
        prefetch.digests = self._digests(prefetch)
        length = self._length(prefetch, self._asks(prefetch))
        return length, length

    def _asks(self, prefetch: Prefetch) -> Exists:
        """Whether storage has a page, for many that follow each other at a time: as many as
        a hit needs in a row, for what is stored of a window or of states lies far apart."""
        keys = [keys_of(prefetch.digests, tag) for tag in self._tags]
        at_once = [min(BATCH_PAGES, pages) for pages in self._needs.most_pages]
        known = prefetch.exists

        def exists(group: int, page: int) -> bool:
            if (group, page) not in known:
                asked = keys[group][page : page + at_once[group]]
                run = self._store.exists(asked)
                self._answered = time.monotonic()
                for n in range(min(run + 1, len(asked))):
                    known.setdefault((group, page + n), n < run)
            return known[group, page]

        return exists

    def _read(self, work: Work) -> tuple[Length, Length]:
        prefetch, came = work.prefetch, work.prefetch.came
        for g, (pages, places) in enumerate(zip(work.pages, work.places, strict=True)):
            for page, small in zip(pages.tolist(), places, strict=True):
                if prefetch.cancelled:
                    break
                if self._read_page(prefetch, g, prefetch.digests[page], small):
                    came.add((g, page))
                else:
                    prefetch.exists[g, page] = False
        asks = self._asks(prefetch)
        return (
            self._length(prefetch, lambda g, page: (g, page) in came),
            self._length(prefetch, lambda g, page: (g, page) in came or asks(g, page)),
        )

    def _read_page(self, prefetch: Prefetch, group: int, digest: str, small: Ids) -> bool:
        (key,) = keys_of([digest], self._tags[group])
        rows = self._pages(group)
        size = rows.shape[1]
        page = self._store.read(key, len(small) * size)
        self._answered = time.monotonic()
        if page is None:
            self._traffic.not_read[group] += 1
            return False
        with self.copying:
            if prefetch.abandoned:
                return False
            rows[torch.from_numpy(small)] = page.view(len(small), size)
        self._traffic.read[group] += 1
        return True

    def _length(self, prefetch: Prefetch, exists: Exists) -> Length:
        known = Known(prefetch.held, exists)

        def length(most: int) -> int:
            # What has been read is of use to somebody, and nothing else is.
            if prefetch.cancelled and prefetch.fetch is None:
                return 0
            return known.longest_hit(self._needs, most)

        return length


def _nothing(most: int) -> int:
    return 0


@dataclass(frozen=True)
class Page:
    """A page of ``group`` to be stored, as it lay in the host when that was decided."""

    group: int
    virtual: int
    small: Ids
    versions: Ids
    digest: str
    key: str


class Writer:
    """Stores pages of the host in order. ``take(page)`` are its bytes, or None where they have
    gone since; ``ended(page, stored)`` is told how it went."""

    def __init__(
        self,
        store: PageStore,
        most_queued: int,
        take: Callable[[Page], torch.Tensor | None],
        ended: Callable[[Page, bool], None],
        traffic: Traffic,
    ) -> None:
        self._store, self._most_queued = store, most_queued
        self._take, self._ended, self._traffic = take, ended, traffic
        self._queue: queue.SimpleQueue[Page | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jenga-storage-write", daemon=True)
        self._thread.start()

    @property
    def num_queued(self) -> int:
        return self._queue.qsize()

    def put(self, page: Page) -> None:
        """Store ``page`` when its turn comes; none that comes when more wait than the host has
        room for, whose bytes will have gone by then."""
        if self.num_queued < self._most_queued:
            self._queue.put(page)
        else:
            self._end(page, False)

    def stop(self, seconds: float | None) -> bool:
        """End the thread; what waits is not stored. Whether it has ended after ``seconds``."""
        self._stopping = True
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (page := self._queue.get()) is not None:
            if self._stopping:
                continue
            stored = False
            try:
                taken = self._take(page)
                stored = taken is not None and self._store.write(page.key, taken)
            except Exception:
                logger.exception("Storage: writing a page failed")
            self._end(page, stored)

    def _end(self, page: Page, stored: bool) -> None:
        (self._traffic.written if stored else self._traffic.not_written)[page.group] += 1
        self._ended(page, stored)
