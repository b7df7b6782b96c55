"""The two threads between host memory and storage: one reads, one writes, each in order.

Neither decides anything. What the reader finds is agreed upon by all ranks before anybody acts on
it; what the writer writes or drops is nobody's business but this rank's storage.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.storage.page_store import PageStore, keys_of
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.fetching import Fetch, Known
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.needs import Needs

logger = logging.getLogger(__name__)

STOP_SECONDS = 30.0  # a backend may hang; whoever detaches it is told then


@dataclass(eq=False)
class Prefetch:
    """What storage has of one request's prompt, on its way up. ``held`` is what the tiers had of
    it when it was asked for, by group and page."""

    handle: Any
    namespace: Any
    tokens: Tokens
    held: list[Any]
    num_pages: int  # that may be a hit at most; after each step, that may be still
    known_pages: int  # that were a hit without storage
    cancelled: bool = False
    waits_since: float | None = None
    digests: list[str] = field(default_factory=list)  # of the pages, once the reader has seen it
    fetch: Fetch | None = None


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
        self._queue: queue.SimpleQueue[tuple[Prefetch, list[Ids]] | None] = queue.SimpleQueue()
        self.done: deque[Prefetch] = deque()
        self._thread = threading.Thread(target=self._run, name="jenga-storage-read", daemon=True)
        self._thread.start()

    def look(self, prefetch: Prefetch) -> None:
        """Find out how many pages may be a hit with what storage has."""
        self._queue.put((prefetch, []))

    def read(self, prefetch: Prefetch, places: list[Ids]) -> None:
        """Read what it fetches into ``places``, by group small pages of shape (pages, stripes)."""
        self._queue.put((prefetch, places))

    def stop(self) -> bool:
        """End the thread after what it has been told; whether it has ended."""
        self._queue.put(None)
        self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            prefetch, places = work
            try:
                length = self._came(prefetch, places) if places else self._exists(prefetch)
            except Exception:
                logger.exception("Storage: reading a prefix failed")
                length = _nothing
            # Whatever happened here, every rank takes part in the agreement.
            most = self._agreement.longest(length, prefetch.num_pages)
            prefetch.num_pages = most
            self.done.append(prefetch)

    def _exists(self, prefetch: Prefetch) -> Callable[[int], int]:
        prefetch.digests = self._digests(prefetch)
        keys = [keys_of(prefetch.digests, tag) for tag in self._tags]
        seen: dict[tuple[int, int], bool] = {}

        def exists(group: int, page: int) -> bool:
            if (group, page) not in seen:
                seen[group, page] = self._store.exists(keys[group][page])
            return seen[group, page]

        return self._length(prefetch, exists)

    def _came(self, prefetch: Prefetch, places: list[Ids]) -> Callable[[int], int]:
        came: set[tuple[int, int]] = set()
        for g, small_pages in enumerate(places):
            pages = present_fetch(prefetch).pages[g].tolist()
            for page, small in zip(pages, small_pages, strict=True):
                if prefetch.cancelled:
                    break
                if self._read_page(g, prefetch.digests[page], small):
                    came.add((g, page))
        return self._length(prefetch, lambda g, page: (g, page) in came)

    def _read_page(self, group: int, digest: str, small: Ids) -> bool:
        (key,) = keys_of([digest], self._tags[group])
        rows = self._pages(group)
        size = rows.shape[1]
        page = self._store.read(key, len(small) * size)
        if page is None:
            self._traffic.not_read[group] += 1
            return False
        rows[torch.from_numpy(small)] = page.view(len(small), size)
        self._traffic.read[group] += 1
        return True

    def _length(
        self, prefetch: Prefetch, exists: Callable[[int, int], bool]
    ) -> Callable[[int], int]:
        known = Known(prefetch.held, exists)
        keep_all = prefetch.fetch is not None  # what has been read is of use to somebody

        def length(most: int) -> int:
            if prefetch.cancelled and not keep_all:
                return 0
            return known.longest_hit(self._needs, most)

        return length


def _nothing(most: int) -> int:
    return 0


def present_fetch(prefetch: Prefetch) -> Fetch:
    if prefetch.fetch is None:
        raise RuntimeError("a prefix is read into no place")
    return prefetch.fetch


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

    def stop(self) -> bool:
        """End the thread; what waits is not stored. Whether it has ended."""
        self._stopping = True
        self._queue.put(None)
        self._thread.join(STOP_SECONDS)
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
