"""A fake engine over storage that has some pages of every history, no matter who wrote them.

Which pages it has is a hash of what they say, so nobody needs to write any. While a history is on
its way up the engine goes on; part of it may be lost on the way."""

from collections import deque
from dataclasses import dataclass

import core_inspector as inside
import numpy as np
from fake_buffer import Hashes, history_hashes
from fake_engine import Job, Pick
from numpy.typing import NDArray
from tiered_engine import Places, TieredEngine

from jenga_sglang.core.books.tree import Encoded
from jenga_sglang.core.fetching import Exists, Fetch, Known
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.tiered_manager import TieredManager


@dataclass
class UnderWay:
    """A fetch of the first ``num_pages`` pages of a job's history, and what a tier held of them."""

    job: Job
    fetch: Fetch
    num_pages: int
    held: list[NDArray[np.bool_]]


class StoredEngine(TieredEngine):
    """Fetches what waiting jobs may hit, and ends fetches in the order in which they began."""

    def __init__(self, manager: TieredManager, pick: Pick) -> None:
        super().__init__(manager, pick)
        self._under_way: deque[UnderWay] = deque()
        self._of_nine = pick(0, 9)

    def step(self) -> None:
        caches = self.manager.prefix_cache
        for job in list(self.waiting)[: self.pick(0, 2)]:
            if caches and not isinstance(job.namespace, Encoded):
                self._begin(job)
        while self._under_way and self.pick(0, 2):
            self._end(self._under_way.popleft())
        super().step()

    def finish(self) -> None:
        while self._under_way:
            self._end(self._under_way.popleft())

    def _is_stored(self, job: Job, group: int, page: int) -> bool:
        last = int(job.hashes[(page + 1) * self.page_size - 1])
        return (last >> 7 ^ group * 5) % 10 <= self._of_nine

    def _begin(self, job: Job) -> None:
        manager, tokens = self.manager, np.array(job.tokens, np.int64)[:-1]
        most = len(tokens) // self.page_size
        path = inside.find(manager, job.namespace, tokens)
        held = manager.fetching.held(path, most)
        places = [
            set(np.flatnonzero(flags).tolist())
            | {page for page in range(most) if self._is_stored(job, g, page)}
            for g, flags in enumerate(held)
        ]
        known = Known(held, lambda g, page: self._is_stored(job, g, page))
        num_pages = known.longest_hit(inside.needs(manager), most)
        assert num_pages == self._longest(job, most, places)
        wanted = manager.fetching.wanted(held, num_pages)
        for g, pages in enumerate(wanted):
            needed = self.naive.needed(g, num_pages * self.page_size, job.namespace)
            assert set(pages.tolist()) == needed - set(np.flatnonzero(held[g]).tolist())
        if not sum(map(len, wanted)):
            return
        fetch = manager.fetching.begin(job.namespace, tokens[: num_pages * self.page_size], wanted)
        self._poison_freed()
        self.counts["fetches begun" if fetch else "fetches without room"] += 1
        if fetch:
            self._under_way.append(UnderWay(job, fetch, num_pages, held))

    def _end(self, under_way: UnderWay) -> None:
        """Write the pages that come, and those of a shorter hit for what does not; what is left at
        the end is a hit that needs nothing else."""
        job, fetch, manager = under_way.job, under_way.fetch, self.manager
        needs, held, tokens = inside.needs(manager), under_way.held, fetch.tokens.tolist()
        came: Places = [set() for _ in fetch.pages]
        lost: Places = [set() for _ in fetch.pages]
        most, more = under_way.num_pages, list(fetch.pages)
        is_whole = bool(self.pick(0, 2))

        def longest(exists: Exists, most: int) -> int:
            return Known(held, exists).longest_hit(needs, most)

        while True:
            self._bring(job, fetch, more, came, lost, is_whole=is_whole)
            num_pages = longest(self._has_come(came), most)
            possible = longest(self._may_come(job, came, lost), most)
            if possible <= num_pages:
                break
            wanted = manager.fetching.wanted(held, possible)
            turned = manager.fetching.turn_to(fetch, wanted)
            self._poison_freed()
            manager.check()
            came = [a & set(b.tolist()) for a, b in zip(came, fetch.pages, strict=True)]
            self.counts["shorter fetches begun" if turned else "no room for a shorter"] += 1
            if turned is None:
                break
            most, more = possible, turned
        hit = manager.fetching.end(fetch, num_pages)
        self._poison_freed()
        manager.check()
        pages = inside.pages_of(manager, np.array(tokens), job.namespace)
        on_device, in_host = inside.held_places(manager, pages)
        either = [a | b for a, b in zip(on_device, in_host, strict=True)]
        assert self._longest(job, len(pages), either) >= hit
        for worth, come in zip(self.worth, came, strict=True):
            # It was worth its place in the host to whoever has stored it.
            worth |= {int(pages[page]) for page in come if page < len(pages)}
        self.counts["fetched pages" if hit == under_way.num_pages else "shorter fetches"] += 1

    def _has_come(self, came: Places) -> Exists:
        return lambda g, page: page in came[g]

    def _may_come(self, job: Job, came: Places, lost: Places) -> Exists:
        return lambda g, page: (
            page in came[g] or (page not in lost[g] and self._is_stored(job, g, page))
        )

    def _bring(
        self, job: Job, fetch: Fetch, more: list[Ids], came: Places, lost: Places, *, is_whole: bool
    ) -> None:
        hashes = history_hashes(job.namespace, fetch.tokens.tolist())
        for g, pages in enumerate(more):
            small = self.manager.fetching.small_pages(fetch, g, pages)
            for page, places in zip(pages.tolist(), small, strict=True):
                if is_whole or self.pick(0, 9):
                    self._write_host(g, page, places, hashes)
                    came[g].add(page)
                else:
                    lost[g].add(page)

    def _write_host(self, group: int, page: int, small: Ids, hashes: Hashes) -> None:
        slots = np.arange(self.page_size, dtype=np.int32)
        if group in self._state_groups:
            slots = slots[-1:]
        where = page * self.page_size + slots
        self.host.write(group, np.tile(small, (len(slots), 1)), slots, hashes[where])
