"""How long copies and prompts take here, for `core.prices`.

A prompt's step is timed from when its pages are placed to when the next pass begins; on a CPU all
of it has been computed by then. Every rank has a clock of its own, so what they learn is the
slowest one's time, asked for after the same number of steps everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.core.prices import Prices

ASK_EVERY_STEPS = 16  # of prompts; one small exchange between ranks


class Measured:
    """Notes what takes how long, and tells ``prices`` now and then."""

    def __init__(self, prices: Prices, agreement: Agreement) -> None:
        self._prices, self._agreement = prices, agreement
        self._steps = self._tokens = self._bytes = 0
        self._prompt_ns = self._copy_ns = 0
        self._began_ns: int | None = None

    @contextmanager
    def copying(self, num_bytes: int) -> Iterator[None]:
        """Meanwhile so many bytes are copied between the tiers."""
        began = time.perf_counter_ns()
        yield
        self._bytes += num_bytes
        self._copy_ns += time.perf_counter_ns() - began

    def prompt_begins(self, tokens: int) -> None:
        """A step begins to compute so many tokens of prompts."""
        self._steps += 1
        self._tokens += tokens
        self._began_ns = time.perf_counter_ns()

    def pass_begins(self) -> None:
        """The step before has ended."""
        if self._began_ns is not None:
            self._prompt_ns += time.perf_counter_ns() - self._began_ns
            self._began_ns = None
            if self._steps % ASK_EVERY_STEPS == 0:
                self._tell()

    def _tell(self) -> None:
        least = self._agreement.least(-self._prompt_ns, -self._copy_ns)
        prompt_ns, copy_ns = (-ns for ns in least)
        self._prices.prompts.learn(self._tokens, prompt_ns)
        self._prices.copies.learn(self._bytes, copy_ns)
        self._tokens = self._bytes = self._prompt_ns = self._copy_ns = 0
