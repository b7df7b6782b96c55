"""How far the look-ahead is trusted: how long it keeps a request out, and how often it was right.

A request that fits is kept out where prefixes that others wait for are worth more
(`core.lookahead`). Each time that is a prediction: these requests will hit so many tokens. So two
limits hold, whatever the load is:

- nobody is kept out in more than ``longest_kept_out_passes`` passes of the scheduler in a row;
- while what comes true of it is worth less than it costs, nobody is kept out at all. After
  `TRIAL_REQUESTS` requests it is tried again.

What comes true saves its tokens. A request that is kept out beside R running ones costs, in every
pass, its share of a step's fixed cost: ``step_cost_tokens`` / R tokens of prompt. A prediction that
fails costs no more than that, so many of them may, where one that does not saves a document.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.prices import Prices
from jenga_sglang.core.running import Counters

FEWEST_SETTLED = 16  # predictions before any judgement
MOST_SETTLED = 128  # then the past counts half
TRIAL_REQUESTS = 256  # begun without a prediction, before there are predictions again


@dataclass
class Guard:
    """Judges for one queue. In requests, passes and tokens alone, so every rank judges alike."""

    policy: CachePolicy
    counters: Counters
    prices: Prices
    _head: str | None = None
    _passes: int = 0
    _predicted: dict[str, int] = field(default_factory=dict)  # tokens, by request
    _settled: int = 0
    _true_tokens: float = 0.0
    _cost_tokens: float = 0.0
    _trial: int = 0

    def begin_pass(self, head: str | None, *, kept_out: bool, num_running: int) -> None:
        """``head`` waits first beside so many that run, and the last pass that asked has
        ``kept_out`` whoever did then."""
        if not kept_out or head != self._head:
            self._passes = 0
        self._head = head
        if kept_out:
            self._passes += 1
            self._cost_tokens += self.prices.step_cost_tokens / max(1, num_running)
            self.counters.kept_out_passes += 1
            longest = max(self.counters.longest_kept_out_passes, self._passes)
            self.counters.longest_kept_out_passes = longest

    @property
    def has_waited_enough(self) -> bool:
        """Whether who waits first may not be kept out any more."""
        return self._passes >= self.policy.longest_kept_out_passes

    @property
    def is_trusted(self) -> bool:
        """Whether anybody may be kept out."""
        return not self._trial

    def predict(self, hit_tokens: Mapping[str, int], waiting: Collection[str]) -> None:
        """Somebody is kept out so that requests hit so many tokens; all that are ``waiting``."""
        for gone in self._predicted.keys() - set(waiting):
            self._settle(self._predicted.pop(gone), 0)
        self._predicted |= hit_tokens

    def began(self, request: str, hit_tokens: int) -> None:
        """``request`` begins with a hit of so many tokens."""
        self._trial = max(0, self._trial - 1)
        if expected := self._predicted.pop(request, 0):
            self._settle(expected, min(hit_tokens, expected))

    def clear(self) -> None:
        """Nobody waits any more, and nothing is known of who did."""
        self._predicted.clear()
        self._passes = 0

    def _settle(self, expected: int, true: int) -> None:
        self.counters.predicted_tokens += expected
        self.counters.missed_tokens += expected - true
        self._true_tokens += true
        self._settled += 1
        if self._settled >= FEWEST_SETTLED and self._cost_tokens > self._true_tokens:
            self._trial = TRIAL_REQUESTS
            self.counters.stopped_predicting += 1
            self._settled, self._true_tokens, self._cost_tokens = 0, 0.0, 0.0
        elif self._settled == MOST_SETTLED:
            self._settled //= 2
            self._true_tokens /= 2
            self._cost_tokens /= 2
