"""What a copy and a prompt take on this server: whether to load a page or to compute it again.

Nanoseconds are measured by whoever copies and computes, and agreed upon by all ranks before they
come here. Decisions are in integers, so ranks that have learned the same decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Of one kind of work: what was measured longer ago counts for less and less.
REMEMBERED_NS = 10 * 10**9


@dataclass
class Rate:
    """``ns`` for so many ``units`` of work, of late."""

    units: int = 0
    ns: int = 0

    def learn(self, units: int, ns: int) -> None:
        self.units += units
        self.ns += ns
        while self.ns > REMEMBERED_NS:
            self.units, self.ns = self.units // 2, self.ns // 2

    @property
    def per_second(self) -> int:
        """Units of work in a second; 0 while nothing is known."""
        return self.units * 10**9 // self.ns if self.ns else 0


@dataclass
class Prices:
    """Bytes copied between the tiers, and tokens of prompts computed."""

    copies: Rate = field(default_factory=Rate)
    prompts: Rate = field(default_factory=Rate)

    def tokens_for(self, num_bytes: int) -> int | None:
        """Tokens of prompts that are computed while ``num_bytes`` are copied; None until both have
        been seen."""
        copies, prompts = self.copies, self.prompts
        if not copies.units or not prompts.ns:
            return None
        return num_bytes * copies.ns * prompts.units // (copies.units * prompts.ns)

    def is_worth(self, num_bytes: int, tokens: int) -> bool:
        """Whether ``num_bytes`` are copied in less time than ``tokens`` are computed in. Yes, until
        both have been seen."""
        copies, prompts = self.copies, self.prompts
        if not copies.units or not prompts.units:
            return True
        return num_bytes * copies.ns * prompts.units <= tokens * prompts.ns * copies.units
