"""Whether pages fit, and the room for them: what `Manager` reserves before it hands pages out."""

from __future__ import annotations

from collections.abc import Sequence

from jenga_sglang.core.ids import ceil_div
from jenga_sglang.core.passing import Passing, Wanted
from jenga_sglang.core.prefixes import Prefixes
from jenga_sglang.core.recurrent import Snapshots
from jenga_sglang.core.running import Counters, Growth, Running


class Room(Prefixes):
    """What `Manager` answers about room; it makes all of this."""

    page_size: int
    counters: Counters
    snapshots: Snapshots
    passing: Passing
    running: dict[int, Running]
    scarce: bool

    # -- room ---------------------------------------------------------------------------------

    def new_pages(self, running: Running, length: int) -> int:
        """Pages that ``running`` lacks to hold ``length`` tokens."""
        missing = ceil_div(length, self.page_size) - running.num_pages
        return missing if missing > 0 else 0

    def snapshots_to_come(self, running: Running, prompt: int, partings: Sequence[int]) -> int:
        """Snapshots of states for which ``running`` is to find room when it computes the rest of
        its ``prompt``; see `save_states`. Alone it does without, or it might never begin."""
        if not self.memory.state_groups or len(self.running) < 2 or not self.prefix_cache:
            return 0
        return self.snapshots.to_come(running, prompt, partings)

    def can_serve(self, pages: Sequence[int]) -> bool:
        """Whether ``pages`` new pages per group fit once everything cached has gone."""
        demand = [n * s for n, s in zip(pages, self.memory.stripes, strict=True)]
        return self.memory.large.can_serve(demand)

    def make_way(self, pages: int, *, passes: bool = False) -> bool:
        """Have running requests give up what they hold for others, one after the other, until
        ``pages`` new pages of those that run already fit in every group; whether they do. With
        ``passes`` they are one request's in one step, and some may pass (`core.passing`)."""
        demand = list(self.memory.small_demand(pages))
        for g in self.passing.groups if passes else ():
            demand[g] = self.passing.most_room(g, pages) * self.memory.stripes[g]
        return self._make_way(demand)

    def _make_way(self, demand: Sequence[int]) -> bool:
        """`make_way` for small pages per group. What requests have not published yet and need no
        more goes as well."""
        for running in self.running.values():
            if self.memory.large.can_serve(demand):
                return True
            self.holding.slide(running, running.waiting_slide_pages)
            self.holding.give_up(running)
        return self.memory.large.can_serve(demand)

    def reserve(
        self,
        demands: Sequence[tuple[Running, int]],
        wanted: Sequence[Wanted] | None = None,
    ) -> bool:
        """Make room for every (request, pages) demand, or change nothing but the cache.

        Evicts cached pages as needed. False when the demands together do not fit, whatever is
        evicted. After True, `extend` cannot fail for these demands.

        ``wanted`` are, by request, lengths whose hits should stay possible where one step computes
        all that the request demands: so some of it may pass where memory is short
        (`core.passing`). None for a request all of whose pages stay.
        """
        own_demands = [(running, self._demand(running, pages)) for running, pages in demands]
        growths: list[Growth] = []
        if wanted is not None and demands and self.passing.groups:
            for growths in self.passing.plan(demands, _together(own_demands), wanted):
                own_demands = self._demands_of(growths)
                if self.memory.large.can_serve(_together(own_demands)):
                    break
        fits = self.make_room(own_demands, sum([pages for _, pages in demands]))
        for growth in growths if fits else ():
            growth.running.growth = growth
        return fits

    def make_room(self, own_demands: Sequence[tuple[Running, tuple[int, ...]]], names: int) -> bool:
        """`reserve`, of small pages per group of each request and ``names`` virtual pages."""
        demand = _together(own_demands)
        if not self._make_way(demand) or not self.evictor.make_names(names):
            self.counters.refused_reservations += 1
            return False
        self.scarce = self.evictor.make_room(own_demands, demand)
        return True

    def _demand(self, running: Running, pages: int) -> tuple[int, ...]:
        """Small pages per group of the next ``pages`` pages of ``running``."""
        states = self.snapshots.needs_state_page(running)
        return self.memory.demand_of_parts(running.parts(pages), states)

    def _demands_of(self, growths: Sequence[Growth]) -> list[tuple[Running, tuple[int, ...]]]:
        """Small pages per group of each growth, with its request."""
        demands = []
        for growth in growths:
            states = self.snapshots.needs_state_page(growth.running)
            small = self.memory.demand_of_step(growth.parts, growth.shared, states)
            demands.append((growth.running, small))
        return demands


def _together(own_demands: Sequence[tuple[Running, tuple[int, ...]]]) -> list[int]:
    return [sum(counts) for counts in zip(*[own for _, own in own_demands], strict=True)]
