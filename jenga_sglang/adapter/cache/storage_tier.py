"""Storage below the host: what goes there, and what of it comes up before a request begins.

Written is what the host is given, page by page, by a thread that nobody waits for. A prefetch makes
two steps through another one, agreed upon by all ranks: how long a hit may be with what storage
has, and how much of that has come. Between them `core.fetching` has taken host pages for it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.storage_prefetch import StoragePrefetchRetries
from sglang.srt.mem_cache.utils import storage_namespace_seed

from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.page_digests import PageDigests, chain
from jenga_sglang.adapter.host_pool import HostPool
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.storage.page_store import PageStore, keys_of
from jenga_sglang.adapter.storage.patience import Patience
from jenga_sglang.adapter.storage.workers import Page, Prefetch, Reader, Traffic, Writer
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.cut.geometry import GroupGeometry
from jenga_sglang.core.fetching import Fetch
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.running import Hit
from jenga_sglang.core.tiers import PageCopy

logger = logging.getLogger(__name__)

Fetched = Callable[[Namespace, Tokens, Ids], None]

BEST_EFFORT, WAIT_COMPLETE, TIMEOUT = PREFETCH_POLICIES = "best_effort", "wait_complete", "timeout"


@dataclass(frozen=True)
class PrefetchRules:
    """When a prefetch is worth asking for, and how long a request waits for it: to its end
    (``wait_complete``), not at all (``best_effort``), or so long (``timeout``)."""

    policy: str
    threshold_tokens: int
    timeout_seconds: float
    timeout_seconds_per_1024_tokens: float
    silence_seconds: float = 0.0  # of the backend, after which nobody waits for it; 0 is never

    def timeout_of(self, tokens: int) -> float:
        return self.timeout_seconds + self.timeout_seconds_per_1024_tokens * tokens / 1024


class StorageTier:
    """Host memory's traffic with one backend, from when it is attached to when it is detached.

    ``tags`` tell the pages of each group from those of any other cut, model or rank; ``fetched`` is
    told of what has come into the tree.
    """

    def __init__(
        self,
        host: HostPool,
        store: PageStore,
        tags: list[str],
        rules: PrefetchRules,
        agreement: Agreement,
        traffic: Traffic,
        fetched: Fetched,
    ) -> None:
        self.manager = manager = host.manager
        self.rules = rules
        self.store = store
        self.retries = StoragePrefetchRetries()
        self.traffic = traffic
        # Everything that the reader has not been heard of yet, in order; and who waits for it.
        self.in_flight: list[Prefetch] = []
        # What the reader owes an answer to, with what nobody waits for any more; and whether
        # nothing else is asked for until it has answered.
        self._unanswered = 0
        self._is_silent = False
        self._of: dict[Any, Prefetch] = {}
        self._loaded: dict[Any, tuple[int, int]] = {}
        # Digests of tree pages that storage has or is about to have, by group and virtual page.
        self._stored: dict[tuple[int, int], str] = {}
        self._host, self._tags, self._agreement = host, tags, agreement
        self._fetched = fetched
        self._digests = PageDigests(manager, seed)
        self._name_all()
        self._beside = agreement.beside()
        most_pages = sum(manager.host_geometry.max_pages(g) for g in manager.needs.groups)
        self.writer = Writer(store, most_pages, self._take, self._written, self.traffic)
        self.reader = Reader(
            store, manager.needs, tags, self._beside, self._digests_of, host.pages, self.traffic
        )

    def reset(self) -> None:
        """The manager has begun anew; nothing is in flight."""
        self._digests.reset()
        self._stored.clear()
        self._of.clear()
        self._loaded.clear()
        self.retries.clear()

    def close(self) -> bool:
        """End both threads and give up what is in flight. Whether they have ended in time: one that
        hangs in the backend is left behind, and touches nothing that is this server's."""
        for prefetch in self.in_flight:
            prefetch.cancelled = True
        patience = Patience(self.rules.silence_seconds)
        ended = [self.writer.stop(patience.left), self.reader.stop(patience.left)]
        self._abandon()
        self.reset()
        if all(ended):
            self._beside.end()
            self.store.close()
        return all(ended)

    def _abandon(self) -> None:
        """Wait for nothing that is in flight any more; what is read of it from now on is lost."""
        with self.reader.copying:
            for prefetch in self.in_flight:
                prefetch.cancelled = prefetch.abandoned = True
        for prefetch in list(self.in_flight):
            if prefetch.fetch is not None:
                self.manager.fetching.end(prefetch.fetch, 0)
            self._end(prefetch, 0)

    # -- up -----------------------------------------------------------------------------------

    def prefetch(self, handle: Any, hit: Hit, tokens: Tokens) -> None:
        """Look whether storage has more of ``tokens`` than the ``hit`` of both tiers."""
        self.retries.cancel(handle.rid)
        manager = self.manager
        num_pages, known = len(tokens) // manager.page_size, hit.path.num_pages
        worth = self._is_worth(num_pages, known)
        if not worth or handle in self._of or self._is_silent:
            return
        tree = manager.tree
        namespace = _namespace(tree.namespace(hit.path.node))
        held = manager.fetching.held(tree.find(namespace, tokens), num_pages)
        prefetch = Prefetch(handle, namespace, tokens.copy(), held, num_pages, known)
        self._of[handle] = prefetch
        self.in_flight.append(prefetch)
        self._unanswered += 1
        self.reader.look(prefetch)

    def _is_worth(self, num_pages: int, known_pages: int) -> bool:
        tokens = (num_pages - known_pages) * self.manager.page_size
        return tokens >= max(self.rules.threshold_tokens, self.manager.page_size)

    def is_ready(self, handle: Any) -> bool:
        """Whether a request need not wait for its prefetch, any more or at all."""
        prefetch = self._of.get(handle)
        if prefetch is None:
            return True
        if self.rules.policy == BEST_EFFORT:
            self._give_up(prefetch)
            self.retries.poll_miss(handle.rid)
            return True
        if prefetch.waits_since is None:
            prefetch.waits_since = time.monotonic()
        return False

    def is_awaited(self, handle: Any) -> bool:
        """Whether a request waits for its prefetch."""
        return handle in self._of

    def release(self, handle: Any) -> None:
        """The request has gone."""
        self._loaded.pop(handle, None)
        self.retries.cancel(handle.rid)
        if handle in self._of:
            self._give_up(self._of[handle])

    def pop_loaded(self, handle: Any) -> tuple[int, int | None]:
        """Tokens that came from storage for a request, and the length of the hit without them."""
        return self._loaded.pop(handle, (0, None))

    def poll(self) -> None:
        """As a pass begins: act on what the reader has found on every rank."""
        if not self._unanswered:
            return
        overdue = [-int(self._is_overdue(prefetch)) for prefetch in self.in_flight]
        is_silent = self.reader.silent_seconds > (self.rules.silence_seconds or math.inf)
        num_done, silent, *overdue = self._agreement.least(
            len(self.reader.done), -int(is_silent), *overdue
        )
        for prefetch, late in zip(list(self.in_flight), overdue, strict=True):
            if late:
                self._give_up(prefetch)
        for _ in range(num_done):
            self._unanswered -= 1
            prefetch = self.reader.done.popleft()
            if not prefetch.abandoned:
                self._go_on(prefetch)
        self._note_silence(silent=bool(silent))

    def _note_silence(self, *, silent: bool) -> None:
        """Where the reader hangs nobody waits for it, and it is asked for nothing more."""
        if silent and self.in_flight:
            self._is_silent = True
            self._abandon()
            logger.warning(
                "Storage: no answer for %g seconds; prompts begin without it until it answers",
                self.rules.silence_seconds,
            )
        elif self._is_silent and not self._unanswered:
            self._is_silent = False
            logger.warning("Storage: the backend answers again")

    def _is_overdue(self, prefetch: Prefetch) -> bool:
        if self.rules.policy != TIMEOUT or prefetch.waits_since is None:
            return False
        waited = time.monotonic() - prefetch.waits_since
        return waited > self.rules.timeout_of(len(prefetch.tokens))

    def _give_up(self, prefetch: Prefetch) -> None:
        """Nobody waits for it any more. What has been read of it by then is of use all the same."""
        prefetch.cancelled = True
        if self._of.get(prefetch.handle) is prefetch:
            del self._of[prefetch.handle]

    def _go_on(self, prefetch: Prefetch) -> None:
        if prefetch.fetch is None:
            self._begin(prefetch)
        elif not self._reads_a_shorter(prefetch, prefetch.fetch):
            self._end(prefetch, self.manager.fetching.end(prefetch.fetch, prefetch.num_pages))

    def _begin(self, prefetch: Prefetch) -> None:
        fetching, num_pages = self.manager.fetching, prefetch.num_pages
        if not prefetch.cancelled and self._is_worth(num_pages, prefetch.known_pages):
            tokens = prefetch.tokens[: num_pages * self.manager.page_size]
            wanted = fetching.wanted(prefetch.held, num_pages)
            prefetch.fetch = fetching.begin(prefetch.namespace, tokens, wanted)
        if prefetch.fetch is None:
            self._end(prefetch, 0)
        else:
            self._read(prefetch, prefetch.fetch, prefetch.fetch.pages)

    def _reads_a_shorter(self, prefetch: Prefetch, fetch: Fetch) -> bool:
        """A page has not come: whether a shorter hit is read, which needs others before it."""
        fetching, num_pages = self.manager.fetching, prefetch.possible_pages
        if prefetch.cancelled or num_pages <= prefetch.num_pages:
            return False
        if not self._is_worth(num_pages, prefetch.known_pages):
            return False
        more = fetching.turn_to(fetch, fetching.wanted(prefetch.held, num_pages))
        prefetch.came &= {
            (g, page) for g, pages in enumerate(fetch.pages) for page in pages.tolist()
        }
        if more is None:
            return False
        prefetch.num_pages = num_pages
        self._read(prefetch, fetch, more)
        return True

    def _read(self, prefetch: Prefetch, fetch: Fetch, pages: list[Ids]) -> None:
        fetching, groups = self.manager.fetching, self.manager.needs.groups
        places = [fetching.small_pages(fetch, g, pages[g]) for g in groups]
        for g, small in enumerate(places):
            self._host.note_written(g, small)
        self._unanswered += 1
        self.reader.read(prefetch, pages, places)

    def _end(self, prefetch: Prefetch, num_pages: int) -> None:
        self.in_flight.remove(prefetch)
        manager, handle = self.manager, prefetch.handle
        tokens = prefetch.tokens[: num_pages * manager.page_size]
        row = manager.tree.pages(manager.tree.find(prefetch.namespace, tokens))[:num_pages]
        self._digests.note(row, prefetch.digests)
        self._fetched(prefetch.namespace, tokens, row)
        self._note_read(prefetch, row)
        gained = max(0, num_pages - prefetch.known_pages) * manager.page_size
        self.traffic.hit_tokens += gained
        if self._of.pop(handle, None) is None:
            return
        if gained:
            self._loaded[handle] = gained, prefetch.known_pages * manager.page_size
        else:
            self.retries.poll_miss(handle.rid)

    def _note_read(self, prefetch: Prefetch, row: Ids) -> None:
        for g, pages in enumerate(prefetch.fetch.pages if prefetch.fetch else ()):
            for page in pages[pages < len(row)].tolist():
                if virtual := int(row[page]):
                    self._stored[g, virtual] = prefetch.digests[page]

    def _digests_of(self, prefetch: Prefetch) -> list[str]:
        size = self.manager.page_size
        tokens = prefetch.tokens[: len(prefetch.held[0]) * size]
        return chain(tokens, seed(prefetch.namespace), size)

    # -- down ---------------------------------------------------------------------------------

    def published(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int) -> None:
        """The pages of ``row`` from ``first`` on, of ``tokens``, are in the tree now."""
        self._digests.name(namespace, tokens, row, first)

    def write(self, copies: Iterable[PageCopy]) -> None:
        """Store what the host has just been given and storage lacks."""
        for copy in copies:
            if copy.to_host:
                self._write(copy.group, copy.virtual, copy.host.reshape(len(copy.virtual), -1))

    def _write(self, group: int, virtual: Ids, small: Ids) -> None:
        # What has left the host since it was copied names another history by now, or none.
        still = (self.manager.memory.host.table[group][virtual] == small).all(axis=1)
        versions = self._host.versions[group][small]
        for index in np.flatnonzero(still).tolist():
            page = int(virtual[index])
            digest = self._digests.of(page)
            if self._stored.get((group, page)) == digest:
                continue
            self._stored[group, page] = digest
            (key,) = keys_of([digest], self._tags[group])
            self.writer.put(Page(group, page, small[index], versions[index], digest, key))

    def _take(self, page: Page) -> torch.Tensor | None:
        """The bytes of a page of the host, unless they were overwritten before or meanwhile: the
        books are asked afterwards, for the host does not wait for a thread."""
        taken = self._host.pages(page.group)[torch.from_numpy(page.small)].ravel()
        same = np.array_equal(self._host.versions[page.group][page.small], page.versions)
        return taken if same and self._lies(page.group, page.virtual, page.small) else None

    def _lies(self, group: int, virtual: int, small: Ids) -> bool:
        return np.array_equal(self.manager.memory.host.table[group][virtual], small)

    def _written(self, page: Page, stored: bool) -> None:
        if not stored and self._stored.get((page.group, page.virtual)) == page.digest:
            self._stored.pop((page.group, page.virtual), None)

    def clear(self) -> bool:
        """Delete everything in the backend, other servers' pages too; whether it could, in time."""
        self._stored.clear()
        return bool(Patience(self.rules.silence_seconds).call(self.store.clear))

    def _name_all(self) -> None:
        tree, size = self.manager.tree, self.manager.page_size
        for node in tree:
            tokens = tree.history(node)
            row = np.zeros(node.stop, np.int64)
            row[node.start :] = node.pages
            before = node.parent
            if before is not None and len(before.pages):
                row[: node.start][-len(before.pages) :] = before.pages
            namespace = _namespace(tree.namespace(node))
            self._digests.name(namespace, tokens[: len(row) * size], row, node.start)


def storage_stats(
    traffic: Traffic, groups: Sequence[GroupGeometry], tier: StorageTier | None
) -> dict[str, Any]:
    """What went to storage and came back, as plain integers, of this rank; what there is to say of
    a ``tier`` is left out where none is attached."""
    stats: dict[str, Any] = {
        "hit_tokens": traffic.hit_tokens,
        "groups": [
            {
                "name": cut.spec.name,
                "written_bytes": traffic.written[g] * cut.page_bytes,
                "read_bytes": traffic.read[g] * cut.page_bytes,
                "not_written_pages": traffic.not_written[g],
                "not_read_pages": traffic.not_read[g],
            }
            for g, cut in enumerate(groups)
        ],
    }
    if tier is not None:
        stats |= {"queued_pages": tier.writer.num_queued, "failures": dict(tier.store.failures)}
    return stats


def seed(namespace: Namespace) -> str | None:
    """What a history's chain of digests begins with: nothing, or a digest of its namespace."""
    shared = storage_namespace_seed(namespace.extra_key, namespace.cache_salt)
    if namespace.adapter is None:
        return shared
    # A caller's key alone must not name an adapter's prefixes.
    return hashlib.sha256(f"adapter {namespace.adapter} {shared}".encode()).hexdigest()


def _namespace(name: Hashable) -> Namespace:
    if not isinstance(name, Namespace):
        raise TypeError(f"a history of {name!r} cannot be stored")
    return name
