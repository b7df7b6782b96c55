"""What copies and steps take on this server: whether to load a page or to compute it again, and
what one more request that shares a step's fixed cost is worth.

Nanoseconds are measured by whoever copies and computes, and agreed upon by all ranks before they
come here. From there on it is arithmetic, so ranks that have learned the same decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jenga_sglang.core.policy import CachePolicy

# Of one kind of work: what was measured longer ago counts for less and less.
REMEMBERED_NS = 10 * 10**9
REMEMBERED_STEPS = 256
# Steps of one kind before anything is said of them.
FEWEST_STEPS = 16
# Prompts that take one part in so many of their steps, or less, tell nothing of a token's cost.
LEAST_SHARE = 4


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
class Steps:
    """``count`` steps: the tokens of prompts that they computed, how often a request decoded in
    one, and the ``ns`` that they took."""

    count: int = 0
    prompt_tokens: int = 0
    decodes: int = 0
    ns: int = 0

    def learn(self, more: Steps) -> None:
        """Add what was measured since, and let what was measured long ago fade."""
        self.count += more.count
        self.prompt_tokens += more.prompt_tokens
        self.decodes += more.decodes
        self.ns += more.ns
        while self.count > REMEMBERED_STEPS:
            self.count, self.prompt_tokens = self.count // 2, self.prompt_tokens // 2
            self.decodes, self.ns = self.decodes // 2, self.ns // 2


@dataclass
class Prices:
    """Bytes copied between the tiers, tokens of prompts computed, and steps: those with prompts,
    and those that only decode, by the bit length of how many requests.

    ``step_cost_tokens`` is what running one more request is weighed with: the policy's share of
    what a step was measured to cost, or its number while that is not known; 0 where it is off.
    """

    policy: CachePolicy = field(default_factory=CachePolicy)
    copies: Rate = field(default_factory=Rate)
    prompts: Rate = field(default_factory=Rate)
    prefills: Steps = field(default_factory=Steps)
    decodes: dict[int, Steps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step_cost_tokens = self.policy.step_cost_tokens

    def learn_steps(self, prefills: Steps, decodes: Mapping[int, Steps]) -> None:
        """Add what steps have taken since; ``decodes`` by the bit length of how many requests."""
        self.prefills.learn(prefills)
        for key, steps in decodes.items():
            self.decodes.setdefault(key, Steps()).learn(steps)
        policy, measured = self.policy, self.measured_step_tokens()
        if measured is not None and policy.step_cost_tokens and policy.step_cost_percent:
            self.step_cost_tokens = max(1, measured * policy.step_cost_percent // 100)

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

    def measured_step_tokens(self) -> int | None:
        """The tokens of prompts that are computed in the time that a step takes however few
        requests it serves; None while it is not known, or where prompts are too short to tell.

        Steps that decode for few and for many requests lie on a line, whose height at none is that
        time. A token of a prompt takes its share of what steps with prompts take beyond the line.
        """
        seen = [self.decodes[key] for key in sorted(self.decodes)]
        seen = [steps for steps in seen if steps.count >= FEWEST_STEPS]
        prefills = self.prefills
        if not seen or prefills.count < FEWEST_STEPS:
            return None
        few, many = seen[0], seen[-1]
        more = many.decodes / many.count - few.decodes / few.count
        request_ns = max(0.0, (many.ns / many.count - few.ns / few.count) / more) if more else 0.0
        fixed_ns = max(0.0, (few.ns - request_ns * few.decodes) / few.count)
        beyond_ns = prefills.ns - fixed_ns * prefills.count - request_ns * prefills.decodes
        if beyond_ns * LEAST_SHARE <= prefills.ns:
            return None
        return int(fixed_ns * prefills.prompt_tokens / beyond_ns)
