"""The two-level allocator alone against a dict of small pages."""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
from core_builders import make_geometry
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jenga_sglang.core.books.large_pages import LargePages
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.ids import Ids

GROUPS = 3
REQUESTS = st.integers(0, 3)
COUNTS = st.integers(0, 12)
GROUP = st.integers(0, GROUPS - 1)


class LargePagesMachine(RuleBasedStateMachine):
    """``state[g]`` says of each held small page whether it is used; what is missing is free."""

    @initialize(layers=st.tuples(*[st.integers(1, 4)] * GROUPS), num_large=st.integers(1, 8))
    def make_pool(self, layers: tuple[int, ...], num_large: int) -> None:
        geometry = make_geometry([Full()] * GROUPS, num_large, layers=layers)
        self.large = LargePages(geometry)
        self.num_large = num_large
        self.per_large = [geometry.small_per_large(g) for g in range(GROUPS)]
        self.state: list[dict[int, bool]] = [{} for _ in range(GROUPS)]
        self.taken_for: dict[int, int] = {}  # large page: request

    # -- the model's words --------------------------------------------------------------------

    def large_of(self, group: int, small: int) -> int:
        return small // self.per_large[group]

    def tenants(self, group: int) -> dict[int, list[int]]:
        """Held small pages by large page."""
        by_large: dict[int, list[int]] = {}
        for small in self.state[group]:
            by_large.setdefault(self.large_of(group, small), []).append(small)
        return by_large

    def idle(self, group: int) -> set[int]:
        """Large pages that hold cached pages and no used one."""
        used = {self.large_of(group, s) for s, is_used in self.state[group].items() if is_used}
        return set(self.tenants(group)) - used

    def num_free(self) -> int:
        return self.num_large - sum(len(self.tenants(g)) for g in range(GROUPS))

    def holes(self, group: int) -> dict[int, int]:
        """Free small pages inside owned large pages, by large page."""
        per_large = self.per_large[group]
        return {large: per_large - len(small) for large, small in self.tenants(group).items()}

    def pick(self, data: st.DataObject, group: int, *, used: bool) -> Ids:
        """Some small pages in one state."""
        options = [s for s, is_used in self.state[group].items() if is_used == used]
        chosen = data.draw(st.sets(st.sampled_from(options))) if options else set()
        return np.array(sorted(chosen), np.int64)

    def drop(self, group: int, small: Ids) -> set[int]:
        """Forget small pages; the large pages that held them."""
        for page in small.tolist():
            del self.state[group][page]
        return {self.large_of(group, page) for page in small.tolist()}

    def num_opened(self, counts: dict[int, int], requests: list[int]) -> int:
        """Free large pages that at most go to ``requests``, who take their own holes first."""
        wanted = [(g, counts[g] * requests.count(r), r) for g in counts for r in set(requests)]
        missing = [(g, max(0, count - self.large.num_holes_of(g, r))) for g, count, r in wanted]
        return sum(-(-count // self.per_large[g]) for g, count in missing)

    # -- rules --------------------------------------------------------------------------------

    @rule(group=GROUP, count=COUNTS, request=REQUESTS, scarce=st.booleans())
    def take(self, group: int, count: int, request: int, scarce: bool) -> None:
        holes, free, per_large = self.holes(group), self.num_free(), self.per_large[group]
        if count > sum(holes.values()) + free * per_large:
            with pytest.raises(MemoryError):
                self.large.take(group, count, request, scarce=scarce)
            return
        own = sum(n for large, n in holes.items() if self.taken_for[large] == request)
        assert self.large.num_holes_of(group, request) == own
        taken = self.large.take(group, count, request, scarce=scarce)[0].tolist()
        assert len(set(taken)) == len(taken) == count
        assert not set(taken) & set(self.state[group]), "a page was handed out twice"
        places = [self.large_of(group, small) for small in taken]
        assert all(1 <= large <= self.num_large for large in places)
        fresh = {large for large in places if large not in holes}
        assert not fresh & {large for g in range(GROUPS) for large in self.tenants(g)}
        in_own = sum(self.taken_for.get(p) == request for p in places if p not in fresh)
        in_fresh = sum(large in fresh for large in places)
        assert in_own == min(count, own), "own holes come first"
        rest = count - in_own
        others = sum(holes.values()) - own
        expected = max(0, rest - others) if scarce else min(rest, free * per_large)
        assert in_fresh == expected
        assert len(fresh) == -(-in_fresh // per_large), "large pages are filled one by one"
        self.state[group].update(dict.fromkeys(taken, True))
        self.taken_for.update(dict.fromkeys(fresh, request))

    @rule(
        counts=st.dictionaries(GROUP, st.integers(0, 3), min_size=1),
        requests=st.lists(REQUESTS, min_size=1, max_size=3),
        scarce=st.booleans(),
    )
    def take_each(self, counts: dict[int, int], requests: list[int], scarce: bool) -> None:
        """Several at once is one after the other, to the last hole."""
        demand = [counts.get(g, 0) * len(requests) for g in range(GROUPS)]
        if self.large.shortfall(demand) > 0:
            return
        if not scarce and self.num_opened(counts, requests) > self.num_free():
            return  # this order is only asked for where nobody is left without a free large page
        alone = copy.deepcopy(self.large)
        expected: dict[int, tuple[set[int], set[int]]] = {g: (set(), set()) for g in counts}
        for request in requests:
            for group, count in counts.items():
                small, fresh = alone.take(group, count, request, scarce=scarce)
                expected[group][0].update(small.tolist())
                expected[group][1].update(fresh.tolist())
                self.taken_for.update(dict.fromkeys(fresh.tolist(), request))
        taken = self.large.take_each(list(counts.items()), requests, scarce=scarce)
        for (group, count), (small, fresh) in zip(counts.items(), taken, strict=True):
            assert (len(small), len(fresh)) == (count * len(requests), len(set(fresh)))
            assert (set(small), set(fresh)) == expected[group]
            self.state[group].update(dict.fromkeys(small, True))
        same = vars(alone).keys() - {"_slots"}
        np.testing.assert_equal(
            {k: vars(self.large)[k] for k in same}, {k: vars(alone)[k] for k in same}
        )

    @rule(group=GROUP, data=st.data())
    def cache(self, group: int, data: st.DataObject) -> None:
        small = self.pick(data, group, used=True)
        idle = self.large.cache(group, small)
        self.state[group].update(dict.fromkeys(small.tolist(), False))
        touched = {self.large_of(group, s) for s in small.tolist()}
        assert set(idle.tolist()) == touched & self.idle(group)

    @rule(group=GROUP, data=st.data())
    def use(self, group: int, data: st.DataObject) -> None:
        small = self.pick(data, group, used=False)
        self.large.use(group, small)
        self.state[group].update(dict.fromkeys(small.tolist(), True))

    @rule(group=GROUP, data=st.data())
    def free_used(self, group: int, data: st.DataObject) -> None:
        small = self.pick(data, group, used=True)
        idle = self.large.free_used(group, small)
        assert set(idle.tolist()) == self.drop(group, small) & self.idle(group)

    @rule(group=GROUP, data=st.data())
    def free_cached(self, group: int, data: st.DataObject) -> None:
        small = self.pick(data, group, used=False)
        self.large.free_cached(group, small)
        self.drop(group, small)

    @rule(demand=st.tuples(*[COUNTS] * GROUPS))
    def ask_for_room(self, demand: tuple[int, ...]) -> None:
        missing = fits = 0
        for g, count in enumerate(demand):
            per_large = self.per_large[g]
            missing += -(-max(0, count - sum(self.holes(g).values())) // per_large)
            used = sum(self.state[g].values())
            kept = len(self.tenants(g)) - len(self.idle(g))
            fits += -(-max(0, count - (kept * per_large - used)) // per_large)
        assert self.large.shortfall(demand) == missing - self.num_free()
        room = self.num_free() + sum(len(self.idle(g)) for g in range(GROUPS))
        assert self.large.can_serve(demand) == (fits <= room)

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.large.check()
        assert self.large.num_free == self.num_free()
        for g in range(GROUPS):
            tenants, idle = self.tenants(g), self.idle(g)
            assert set(np.flatnonzero(self.large.owner == g).tolist()) == set(tenants)
            assert self.large.num_owned[g] == len(tenants)
            assert self.large.num_reclaimable[g] == len(idle)
            assert self.large.num_held[g] == len(self.state[g])
            assert self.large.num_used[g] == sum(self.state[g].values())
            for large, small in tenants.items():
                assert self.large.held[large] == len(small)
                assert self.large.used[large] == sum(self.state[g][s] for s in small)
            mixed = {large for large in tenants if 0 < self.large.used[large] < len(tenants[large])}
            assert set(self.large.mixed(g)) == mixed


TestLargePages = LargePagesMachine.TestCase
TestLargePages.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
