"""How long copies and prompts take here, for `core.prices`.

A prompt's step is timed from when its pages are placed to when the next pass begins, in the time of
whoever copies and computes: on a CPU all of it has been computed by then, and of a GPU's stream the
step is what lies between. Every rank has a clock of its own, so what they learn is the slowest
one's time, asked for after the same number of steps everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jenga_sglang.adapter.host_copies import HostCopies
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.core.prices import Prices

ASK_EVERY_STEPS = 16  # of prompts; one small exchange between ranks


class Measured:
    """Notes what takes how long, and tells ``prices`` now and then."""

    def __init__(self, prices: Prices, agreement: Agreement, clock: HostCopies) -> None:
        self._prices, self._agreement, self._clock = prices, agreement, clock
        self._steps = self._tokens = self._bytes = 0
        # From which mark of the clock to which.
        self._prompts: list[tuple[Any, Any]] = []
        self._copies: list[tuple[Any, Any]] = []
        self._began: Any = None

    @contextmanager
    def copying(self, num_bytes: int) -> Iterator[None]:
        """Meanwhile so many bytes are copied between the tiers."""
        began = self._clock.mark()
        yield
        self._bytes += num_bytes
        self._copies.append((began, self._clock.mark()))

    def prompt_begins(self, tokens: int) -> None:
        """A step begins to compute so many tokens of prompts."""
        self._steps += 1
        self._tokens += tokens
        self._began = self._clock.mark()

    def pass_begins(self) -> None:
        """The step before has ended."""
        if self._began is not None:
            self._prompts.append((self._began, self._clock.mark()))
            self._began = None
            if self._steps % ASK_EVERY_STEPS == 0:
                self._tell()

    def _tell(self) -> None:
        own = [sum(self._clock.ns_between(*m) for m in ms) for ms in (self._prompts, self._copies)]
        prompt_ns, copy_ns = (-ns for ns in self._agreement.least(*(-ns for ns in own)))
        self._prices.prompts.learn(self._tokens, prompt_ns)
        self._prices.copies.learn(self._bytes, copy_ns)
        self._tokens = self._bytes = 0
        self._prompts, self._copies = [], []
