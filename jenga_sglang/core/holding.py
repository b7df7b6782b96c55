"""What running requests hold for others: tree pages that they need no more themselves.

A window that slides past the end of a shared prefix would let go of pages that the next request on
that prefix needs. Holding them costs room in which one more request could run, so it has to pay;
and all of it is given up before a reservation fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.needs import Needs
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.prices import Prices
from jenga_sglang.core.ranges import Range, intersect, subtract, union
from jenga_sglang.core.running import Counters, Running


@dataclass(frozen=True)
class Holding:
    """Decides what a request holds for others when its windows slide."""

    memory: Memory
    needs: Needs
    policy: CachePolicy
    counters: Counters
    prices: Prices

    def slide(self, running: Running, num_pages: int) -> None:
        """Let go of what a history of ``num_pages`` pages no longer needs, but for what is worth
        holding for others."""
        if not running.begin_slide(num_pages):
            return
        length = num_pages * self.needs.page_size
        for g in self.needs.forgetful:
            if not running.held[g]:
                continue
            gone = running.let_go(g, running.history.pages(g, length))
            if gone and running.shared and (kept := self._worth_holding(g, running, gone)):
                running.hold_for_others(g, kept)
                gone = [] if kept == gone else subtract(gone, kept)
            for pages in running.of(gone):
                self.memory.unpin(g, pages)

    def give_up(self, running: Running) -> None:
        """Hold nothing of ``running`` for others any more."""
        for g, ranges in enumerate(running.give_up_all_for_others()):
            for pages in running.of(ranges) if ranges else ():
                self.memory.unpin(g, pages)

    def _worth_holding(self, group: int, running: Running, gone: Sequence[Range]) -> list[Range]:
        """Tree pages of ``group`` among those ``gone`` that hits of the shared lengths need."""
        page_size = self.needs.page_size
        if not self.policy.hold_hits or gone[0].start * page_size >= max(running.shared):
            return []
        kept: list[Range] = []
        for length in running.shared:
            length = length // page_size * page_size
            needed = running.history.pages(group, length)
            hit = intersect(gone, needed)
            if hit and self._pays(group, running, length, needed):
                kept += hit
        if len(kept) > 1:
            kept = union(kept)
        if kept and kept[-1].stop > running.tree_pages:
            kept = intersect(kept, [Range(0, running.tree_pages)])
        return kept

    def _pays(self, group: int, running: Running, length: int, needed: Sequence[Range]) -> bool:
        """Whether holding the pages ``needed`` for a hit of ``length`` tokens is worth more than
        one more request that runs in their place.

        The weighing is that of `core.lookahead`, with R running requests that use U large pages, A
        each. A request is admitted every ``mean_decode_steps / R`` steps; of those that run, H
        hold this prefix, so one in R / H of those to come is taken to want it. The B large pages
        save, by step, ``length · H / mean_decode_steps``, and would earn in a request's place
        ``step_cost_tokens / R · B / A``, where R · A is U.
        """
        memory = self.memory
        small = sum([stop - start for start, stop in needed]) * memory.stripes[group]
        large = small / memory.large.small_per_large[group]
        holders = memory.pins.item(group, running.pages.item(needed[-1].stop - 1))
        cost_tokens = self.prices.step_cost_tokens * self.counters.mean_decode_steps
        return length * holders * memory.large.large_pages_in_use() >= cost_tokens * large

    def prompt_slack(self, geometry: Geometry, prompt_tokens: int) -> int:
        """How far before the end of a prompt a hit is kept possible, in tokens: the policy's
        number, or less where groups that forget would hold more than a twentieth of what the
        prompt takes for ever."""
        lasting = fleeting = 0  # bytes of a page of text
        for g, cut in enumerate(geometry.groups):
            if g not in self.needs.forgetful:
                lasting += cut.page_bytes
            elif g in self.memory.row_groups:
                fleeting += cut.page_bytes
        if not fleeting:
            return 0
        return min(self.policy.prompt_slack_tokens, prompt_tokens * lasting // (20 * fleeting))
