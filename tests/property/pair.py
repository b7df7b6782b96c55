"""A manager and the naive model side by side, and everything that must agree between them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import core_inspector as inside
from core_inspector import Histories, Place, Snapshot, places, row_holds, snapshot
from naive_cache import LargePage, NaiveCache, Request
from random_pools import Pool

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running


@dataclass(frozen=True)
class Epoch:
    """Of a large page with ``tenants``: its ``time``, the places of its last tenant since it has
    had that, and the latest use of any tenant since it has had them."""

    tenants: frozenset[int]
    has_others: bool
    time: int
    shallowest: int
    deepest: int
    latest: int


class Pair:
    """Both sides of one pool. ``documents`` are histories to look up at every check."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.manager = Manager(
            pool.geometry,
            max_requests=pool.max_requests,
            max_length=pool.max_length,
            prefix_cache=pool.prefix_cache,
            policy=pool.policy,
        )
        self.page_size = pool.geometry.page_size
        self.namespaces: tuple[Hashable, ...] = (None, "salt", *pool.encoded())
        dependencies = [g.spec.dependency for g in pool.geometry.groups]
        states = {g for g, cut in enumerate(pool.geometry.groups) if cut.spec.is_state}
        self.model = NaiveCache(dependencies, Histories(self.page_size), pool.max_length, states)
        self.running: dict[Request, Running] = {}
        self.documents: list[Tokens] = []
        self._epochs: dict[tuple[int, int], Epoch] = {}
        # Small pages as large as large pages: every cached page can be evicted alone.
        self.exact_order = all(k == 1 for k in inside.small_per_large(self.manager))

    @property
    def live(self) -> list[Request]:
        return self.model.requests

    def check(self) -> None:
        self.manager.check()
        seen = self.see()
        self._check_pages(seen)
        self._check_requests(seen)
        self._check_conservation(seen)
        self._check_hits()
        self._check_times()

    def kept_for_others(self, request: Request) -> list[set[int]]:
        """Places in a request's row that it keeps pinned for later requests."""
        ranges_of = self.running[request].held_for_others
        return [{p for r in ranges for p in range(r.start, r.stop)} for ranges in ranges_of]

    def large_pages(self) -> list[LargePage] | None:
        """Who lies where, and since when nothing there was used; None where a policy has another
        order of eviction."""
        policy = self.manager.policy
        if not (policy.balanced and policy.aligned):
            return None
        seen = places(self.manager, self.see())
        self._epochs = {place.key: self._epoch(place) for place in seen}
        return [
            LargePage(
                place.group,
                place.tenants,
                place.is_idle,
                place.time,
                (self._epochs[place.key].shallowest, self._epochs[place.key].deepest),
            )
            for place in seen
        ]

    def _epoch(self, place: Place) -> Epoch:
        """What has been seen of a large page since other tenants had it, or it another time."""
        depth = max((self.model.histories.depth[p] for p in place.tenants), default=0)
        latest = self.model.latest_use(place.group, place.tenants)
        # A page that is not in the tree counts as deep as that number was the last time.
        low, high = (0, self.pool.max_length) if place.has_others else (depth, depth)
        before = self._epochs.get(place.key)
        # A page that was not in the tree may have come into it, under another name.
        stays = before is not None and (before.has_others or place.has_others)
        if before is not None and (stays or before.tenants & place.tenants):
            latest = max(latest, before.latest)
            if before.time == place.time:
                low, high = min(low, before.shallowest), max(high, before.deepest)
        return Epoch(place.tenants, place.has_others, place.time, low, high, latest)

    def used_by_others(self, since: int) -> None:
        """Somebody whom the model does not know has used every large page that is more recent than
        ``since``."""
        self.large_pages()
        for key, epoch in self._epochs.items():
            if epoch.time > since:
                self._epochs[key] = replace(epoch, latest=max(epoch.latest, epoch.time))

    def forget_places(self) -> None:
        self._epochs.clear()

    def evicted(self, before: list[LargePage] | None) -> None:
        """The manager has evicted what it chose to."""
        self.model.evict(self.see().cached, before, alone=self.exact_order)

    def used(self, request: Request, num_pages: int) -> None:
        """What the request's hits need of its first ``num_pages`` was used a moment ago."""
        pages, lengths = request.pages[:num_pages], self.running[request].kept
        self.model.use(request.namespace, pages, lengths, inside.now(self.manager))
        self.large_pages()

    def _check_times(self) -> None:
        """A large page has the time at which the last of its tenants was used."""
        for large in self.large_pages() or []:
            latest = self.model.latest_use(large.group, large.tenants)
            assert latest <= large.time, "used, and not as recent"
        for epoch in self._epochs.values():
            assert epoch.time <= epoch.latest, "more recent than any of its tenants"

    def see(self) -> Snapshot:
        return snapshot(self.manager, self.model.histories)

    def _check_pages(self, seen: Snapshot) -> None:
        """The tree holds for every group just what the model says, pinned as often."""
        assert seen.cached == self.model.cached
        assert seen.pins == [self.model.pins(g) for g in self.model.groups]
        named = set().union(*(r.names for r in self.live))
        assert set(seen.virtual) == named.union(*seen.cached), "a virtual page for nothing"

    def _check_requests(self, seen: Snapshot) -> None:
        """Every running request finds all that it still needs, in pages of its own or shared."""
        rows: list[int] = []
        for request, running in self.running.items():
            assert (running.num_pages, running.tree_pages) == (
                request.num_pages,
                request.tree_pages,
            )
            assert (running.to_publish_pages, running.waiting_slide_pages) == (
                request.to_publish,
                request.waits,
            )
            assert running.answer_page == (0 if request.answer is None else request.answer + 1)
            shared = zip(running.row.tolist(), request.pages[: running.tree_pages], strict=False)
            for virtual, page in shared:
                assert virtual == (seen.virtual[page] if page in request.names else 0)
            rows += running.row[running.tree_pages :].tolist()
            for g in self.model.groups:
                present = row_holds(self.manager, running, g)
                assert request.held[g] <= present
                working = g in self.model.states and request.has_state
                needed = self.model.needed(g, request.length, request.namespace)
                assert working or needed <= present
                assert working == bool(
                    running.state_page and inside.tables(self.manager)[g][running.state_page, 0]
                )
                private = {p for p in present if p >= running.tree_pages}
                passing = request.passing.get(g, set())
                assert private == self.model.private(g, request) | passing
        assert len(set(rows)) == len(rows) and 0 not in rows
        assert not set(rows) & set(seen.virtual.values())
        in_use = len(rows) + len(seen.virtual)
        assert inside.num_free_ids(self.manager) == inside.num_ids(self.manager) - in_use

    def _check_conservation(self, seen: Snapshot) -> None:
        """Recount from the page tables alone: bytes are owned once, and nothing is lost."""
        manager, geometry = self.manager, self.pool.geometry
        large_bytes = geometry.large_page_bytes
        starts: list[tuple[int, int]] = []
        owned: list[set[int]] = []
        for g, cut in enumerate(geometry.groups):
            size, stripes = cut.small_page_bytes, cut.stripes
            used, idle = seen.used_small[g], seen.idle_small[g]
            tree_used = len(self.model.pins(g))
            own = stripes * (tree_used + self.model.num_private(g))
            assert len(used) == own + self.model.num_passing(g)
            assert len(idle) == stripes * (len(self.model.cached[g]) - tree_used)
            starts += [(p * size, (p + 1) * size) for p in used | idle]
            owned.append({p * size // large_bytes for p in used | idle})
            assert inside.num_used(manager)[g] == len(used)
            assert inside.num_held(manager)[g] == len(used) + len(idle)
            assert inside.num_owned(manager)[g] == len(owned[g])
        starts.sort()
        ends = [0, *(end for _, end in starts)]
        assert all(end <= start for end, (start, _) in zip(ends, starts, strict=False)), "overlap"
        assert not starts or large_bytes <= starts[0][0], "reserved page in use"
        assert ends[-1] <= geometry.pool_bytes
        assert len(set().union(*owned)) == sum(map(len, owned)), "a large page has two owners"
        assert inside.num_free(manager) == geometry.num_large_pages - sum(map(len, owned))

    def _check_hits(self) -> None:
        """Hits of whole documents and of running requests equal brute force over all lengths."""
        known = self.model.known()
        probes: list[tuple[Hashable, Tokens]] = [
            (n, d) for n in self.namespaces for d in self.documents
        ]
        probes += [(r.namespace, r.tokens) for r in self.live]
        for namespace, tokens in probes:
            pages = self.model.histories.pages(namespace, tokens)
            expected, matched = self.model.hit(pages, known)
            hit = self.manager.match(namespace, tokens)
            assert hit.path.num_pages == expected
            if not self.pool.prefix_cache:
                continue
            assert hit.matched_pages == matched
            if expected == matched:
                assert hit.cut_by is None
            else:
                assert hit.cut_by is not None
                assert not self.model.accepts(hit.cut_by, pages, expected + 1)

    def _private_for_others(self, group: int) -> list[int]:
        """Virtual pages outside the tree that hold a snapshot of ``group``, or wait for it to
        be published."""
        return [
            int(self.running[r].row[place])
            for r in self.live
            for place in r.for_others[group] | (r.held[group] - self.model.kept_for_good(group, r))
            if place >= r.tree_pages
        ]

    def demand(self, pages: int, states: int) -> list[int]:
        """``pages`` of text in every group of rows, ``states`` in every group of states."""
        return [
            states if g in self.model.states else pages * self.model.has_page(g, 0, None)
            for g in self.model.groups
        ]

    def batch_demand(self, batch: Sequence[tuple[Request, int]], states: int) -> list[int]:
        """The new pages of each request in the groups that have them, and ``states``."""
        demand = self.demand(0, states)
        for request, length in batch:
            for place in range(request.num_pages, -(-length // self.page_size)):
                for g in self.model.groups:
                    demand[g] += self.model.has_page(g, place, request.namespace)
        return demand

    def fits(
        self, pages: Sequence[int], *, at_last: bool, passing: Sequence[int] | None = None
    ) -> bool:
        """Whether pages in each group fit when only what is pinned stays where it is; ``at_last``
        what requests keep for others goes too. Of ``passing`` pages each is one small page."""
        geometry = self.pool.geometry
        seen = self.see()
        used = seen.used_small
        if at_last:
            for g, table in enumerate(inside.tables(self.manager)):
                own = self.model.pins(g, for_others=False)
                rows = [seen.virtual[page] for page in self.model.pins(g) if page not in own]
                rows += self._private_for_others(g)
                used[g] -= set(table[rows].ravel().tolist())
        free = geometry.num_large_pages
        missing = 0
        for g, count in enumerate(pages):
            per_large = geometry.small_per_large(g)
            occupied = {p // per_large for p in used[g]}
            free -= len(occupied)
            beside = len(occupied) * per_large - len(used[g])
            small = count * geometry.groups[g].stripes + (passing[g] if passing else 0)
            missing += -(-max(0, small - beside) // per_large)
        return missing <= free
