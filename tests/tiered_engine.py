"""A fake engine with host memory: it copies what the manager says, and knows what must be copied.

Host memory is a second `fake_buffer.Buffer`. What is freed in either tier is poison at once, so a
page that is loaded before it was written, or from another place, cannot go unnoticed. What a hit
must be and what a load must copy is worked out anew from the page tables, page by page."""

from collections import Counter

import core_inspector as inside
import numpy as np
from fake_buffer import Buffer, history_hashes
from fake_engine import FakeEngine, Job, Pick, running_of
from naive_cache import NaiveCache

from jenga_sglang.core.ids import Ids
from jenga_sglang.core.running import Hit
from jenga_sglang.core.tiered_manager import TieredManager

Places = list[set[int]]


class TieredEngine(FakeEngine):
    """Loads what the host holds of a hit whenever there is room, and writes what is worth it."""

    manager: TieredManager

    def __init__(self, manager: TieredManager, pick: Pick) -> None:
        super().__init__(manager, pick)
        self.host = Buffer(manager.host_geometry)
        self._host_held = inside.host_held(manager)
        dependencies = [cut.spec.dependency for cut in manager.geometry.groups]
        states = set(inside.state_groups(manager))
        histories = inside.Histories(self.page_size)
        # Only asked what a history needs.
        self.naive = NaiveCache(dependencies, histories, manager.max_length, states)
        # Virtual pages that some kept length needed, of each group: all that may be written.
        self.worth: Places = [set() for _ in dependencies]

    def finish(self) -> None:
        """End what is still under way: nothing is, between two tiers."""

    # -- hits and loads -----------------------------------------------------------------------

    def _start(self, job: Job) -> None:
        tokens = np.array(job.tokens, np.int64)[:-1]
        device, whole = self.manager.match_tiers(job.namespace, tokens)
        pages = inside.pages_of(self.manager, tokens, job.namespace)
        on_device, in_host = inside.held_places(self.manager, pages)
        either = [a | b for a, b in zip(on_device, in_host, strict=True)]
        assert device.path.num_pages == self._longest(job, len(pages), on_device)
        assert whole.path.num_pages == self._longest(job, len(pages), either)
        assert (device is whole) == (device.path.num_pages == whole.path.num_pages)
        if device is whole or not self._load(job, whole, on_device):
            job.running = self.manager.lock(device)
            whole = device
        job.computed = whole.path.num_pages * self.page_size
        self.counts["hit tokens"] += job.computed
        self.counts["hit tokens from the host"] += job.computed - (
            device.path.num_pages * self.page_size
        )

    def _load(self, job: Job, whole: Hit, on_device: Places) -> bool:
        beside = self._promised(job, whole, on_device)
        before = Counter(self.manager.tier_counters.loaded)
        job.running = self.manager.load(whole, beside)
        self._poison_freed()
        if job.running is None:
            assert self.manager.tier_counters.loaded == before
            self.counts["declined loads"] += 1
            return False
        length = whole.path.num_pages * self.page_size
        for g in self.naive.groups:
            missing = self.naive.needed(g, length, job.namespace) - on_device[g]
            loaded = self.manager.tier_counters.loaded[g] - before[g]
            assert loaded == len(missing), "loaded other pages than the hit needs"
        assert self.manager.can_serve(beside), "loaded into room that others were promised"
        self.counts["loads"] += 1
        return True

    def _promised(self, job: Job, whole: Hit, on_device: Places) -> list[int]:
        """Pages of each group for others: often all that would just fit beside what is missing."""
        length, fits = whole.path.num_pages * self.page_size, self.manager.can_serve
        promised = [0 for _ in self.naive.groups]
        missing = [
            len(self.naive.needed(g, length, job.namespace) - on_device[g])
            for g in self.naive.groups
        ]
        for _ in range(self.pick(0, 1) * 40):
            more = list(promised)
            more[self.pick(0, len(more) - 1)] += 1
            if not fits([a + b for a, b in zip(more, missing, strict=True)]):
                break
            promised = more
        return promised

    def _longest(self, job: Job, num_pages: int, places: Places) -> int:
        """The most pages that every group could continue from with those at ``places``."""
        if not self.manager.prefix_cache:
            return 0
        naive, namespace = self.naive, job.namespace
        for n in range(num_pages, 0, -1):
            length = n * self.page_size
            if all(
                naive.is_whole(g, namespace, length)
                and naive.needed(g, length, namespace) <= places[g]
                for g in naive.groups
            ):
                return n
        return 0

    # -- copies -------------------------------------------------------------------------------

    def _poison_freed(self) -> None:
        """Run the copies first. A load is also handed what was freed for it: that is poison
        before."""
        self._note_worth()
        poisoned = False
        for copy in self.manager.tiers.take_copies():
            if copy.to_host:
                self._check_worth(copy.group, copy.host)
                self._move(copy.group, self.buffer, copy.device, self.host, copy.host)
                self.counts["written pages"] += len(copy.host)
                continue
            if not poisoned:
                super()._poison_freed()
            poisoned = True
            self._move(copy.group, self.host, copy.host, self.buffer, copy.device)
        if not poisoned:
            super()._poison_freed()
        before, self._host_held = self._host_held, inside.host_held(self.manager)
        for group, (was, now) in enumerate(zip(before, self._host_held, strict=True)):
            self._poison_host(group, was - now)

    def _move(self, group: int, source: Buffer, src: Ids, target: Buffer, dst: Ids) -> None:
        size = self.geometry.groups[group].small_page_bytes
        for a, b in zip(src.tolist(), dst.tolist(), strict=True):
            target.bytes[b * size : (b + 1) * size] = source.bytes[a * size : (a + 1) * size]

    def _poison_host(self, group: int, small: set[int]) -> None:
        """Of what was freed, what nobody has been given since: no group's page lies there."""
        size = self.geometry.groups[group].small_page_bytes
        owner = inside.host_owner(self.manager)
        per_large = self.geometry.small_per_large(group)
        free = [p for p in small if owner[p // per_large] in (-1, group)]
        self.host.poison(group, np.array(free, np.int64))
        self.counts["freed bytes of the host"] += len(free) * size

    def _note_worth(self) -> None:
        free = set(inside.free_ids(self.manager).tolist())
        for group in self.naive.groups:
            self.worth[group] -= free
        for job in self.running:
            if job.running is not None and job.running.num_pages:
                self._note_worth_of(job)

    def _note_worth_of(self, job: Job) -> None:
        """What every longer history needs, and hits of the lengths that the request keeps."""
        running = running_of(job)
        for g in self.naive.groups:
            places = self.naive.needed_for_ever(g, job.namespace) | set(range(job.encoder_tokens))
            for length in running.kept:
                whole = length // self.page_size * self.page_size
                places |= self.naive.needed(g, whole, job.namespace)
            self.worth[g] |= {int(running.row[p]) for p in places if p < running.tree_pages}

    def _check_worth(self, group: int, host: Ids) -> None:
        written = inside.host_virtual(self.manager, group, host)
        assert written <= self.worth[group] | {0}, "wrote what no kept hit needs"

    # -- what is where ------------------------------------------------------------------------

    def check_cached(self) -> None:
        """Read every page of the tree, in both tiers."""
        super().check_cached()
        tables = inside.host_tables(self.manager)
        for namespace, tokens, node in inside.histories(self.manager):
            hashes = history_hashes(namespace, tokens)[node.start * self.page_size :]
            for group, table in enumerate(tables):
                held = np.flatnonzero(table[node.pages, 0])
                places = held[:, None] * self.page_size + np.arange(self.page_size)
                if group in self._state_groups:
                    places = places[:, -1:]
                if not (where := places.ravel()).size:
                    continue
                small = table[node.pages[where // self.page_size]]
                slots = (where % self.page_size).astype(np.int32)
                what = f"host, tokens {where[0]} and on"
                self.host.check(group, small, slots, hashes[where], what)
                self.counts["checked tokens of the host"] += len(where)
        self.host.check_reserved()
