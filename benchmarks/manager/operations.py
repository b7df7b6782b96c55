"""One round of a server's life, each operation of the manager timed by itself.

A round is a batch of requests: each hits a cached prefix, computes a prompt, decodes some pages,
and ends. A full pool is as full after it as before, so rounds can be repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from benchmarks.manager.pools import PAGE_TOKENS, fresh_tokens, history
from benchmarks.manager.timing import Samples
from jenga_sglang.adapter.cache.admission_pass import Admission
from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.core.admission import fits_free, request_pages
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running

PREFIX_TOKENS = 1_024  # of a cached prefix, all of it hit
PROMPT_TOKENS = 256  # to compute beyond it
DECODED_PAGES = 3
WAITING_REQUESTS = 256
WAITING_PREFIXES = 12  # that they want between them, where the pool has so many

# What one unit of an operation is. In the order in which a request meets them.
UNITS = {
    "match": "request",
    "lock": "request",
    "open pass": "pass",
    "weigh": "pass",
    "refuse": "pass",
    "evict": "page evicted",
    "prefill": "request",
    "insert": "request",
    "evict few": "page evicted",
    "decode": "request",
    "retire": "request",
}


class Queue(Admission):
    """``waiting`` are the tokens of the requests in the queue."""

    def __init__(self, manager: Manager, waiting: Sequence[Tokens]) -> None:
        super().__init__(manager)
        self.waiting = waiting

    def look_ahead(self) -> None:
        def read(index: int) -> tuple[Hashable, Tokens]:
            return None, self.waiting[index]

        self.lookahead.look([str(i) for i in range(len(self.waiting))], read)


class Rounds:
    """Runs rounds of ``batch`` requests on a pool with ``prefixes`` cached histories."""

    _numbers = itertools.count(1)  # of all requests, so that no two compute the same prompt

    def __init__(self, manager: Manager, prefixes: int, batch: int) -> None:
        self.manager = manager
        self.batch = batch
        self.samples = Samples()
        # The younger half: the older one is what rounds push out.
        hot = range(prefixes - max(2, prefixes // 2), prefixes)
        num_wanted = min(WAITING_PREFIXES, max(1, len(hot) // 4))
        self._hot = hot[num_wanted:]
        wanted = [history(number, PREFIX_TOKENS) for number in hot[:num_wanted]]
        self._queue = Queue(manager, [wanted[i % num_wanted] for i in range(WAITING_REQUESTS)])

    def run(self) -> None:
        """One round. Raises ``AssertionError`` if a prefix that should be cached is not hit."""
        prompts = [self._prompt() for _ in range(self.batch)]
        batch = self._begin(prompts)
        self._admit()
        self._prefill(batch)
        self._insert(batch, prompts)
        self._decode(batch)
        with self.samples.timed("retire", lambda: self.batch):
            for running in batch:
                self.manager.release(running)

    def _prompt(self) -> Tokens:
        number = next(self._numbers)
        prefix = history(self._hot[number % len(self._hot)], PREFIX_TOKENS)
        return np.concatenate((prefix, fresh_tokens((1 << 30) + number, PROMPT_TOKENS)))

    def _begin(self, prompts: Sequence[Tokens]) -> list[Running]:
        manager = self.manager
        with self.samples.timed("match", lambda: self.batch):
            hits = [manager.match(None, prompt[:-1]) for prompt in prompts]
        hit_pages = {hit.path.num_pages for hit in hits}
        assert hit_pages == {PREFIX_TOKENS // PAGE_TOKENS}, f"hits of {hit_pages} pages"
        with self.samples.timed("lock", lambda: self.batch):
            batch = [manager.lock(hit) for hit in hits]
        return batch

    def _admit(self) -> None:
        """Ask for the head of a queue, first where it fits only in place of cached prefixes that
        others wait for, then where it does not fit. Nothing is admitted."""
        self._queue.now.candidate = next(reversed(self.manager.running.values()))
        with self.samples.timed("open pass", lambda: 1):
            budget = JengaPrefillBudget(self._queue)
        new_tokens = self._more_than_is_free()
        if self.manager.can_serve(request_pages(self.manager, new_tokens, new_tokens, 0)):
            with self.samples.timed("weigh", lambda: 1):
                _ask(budget, new_tokens)
            assert self._queue.lookahead.wanted, "no waiting request wants a cached prefix"
        self._promise_everything(budget)
        with self.samples.timed("refuse", lambda: 1):
            fits = _ask(budget)
        assert not fits, "the head should not have fitted"

    def _more_than_is_free(self) -> int:
        tokens = PROMPT_TOKENS
        while fits_free(self.manager, request_pages(self.manager, tokens, tokens, 0)):
            tokens *= 2
        return tokens

    def _promise_everything(self, budget: JengaPrefillBudget) -> None:
        """Whatever others want: a request would be kept out for that, with room to spare."""
        prices = self.manager.prices
        cost_tokens, prices.step_cost_tokens = prices.step_cost_tokens, 0
        longest = self.manager.max_length
        while longest >= PAGE_TOKENS:
            while _ask(budget, longest):
                budget.reserve(longest, 0)
            longest //= 4
        prices.step_cost_tokens = cost_tokens

    def _prefill(self, batch: Sequence[Running]) -> None:
        manager = self.manager
        length = PREFIX_TOKENS + PROMPT_TOKENS
        self._reserve("evict", batch, length)
        with self.samples.timed("prefill", lambda: self.batch):
            assert manager.reserve(
                [(running, manager.new_pages(running, length)) for running in batch]
            )
            for running in batch:
                manager.extend(running, length)

    def _insert(self, batch: Sequence[Running], prompts: Sequence[Tokens]) -> None:
        with self.samples.timed("insert", lambda: self.batch):
            for running, prompt in zip(batch, prompts, strict=True):
                self.manager.publish(running, None, prompt)

    def _decode(self, batch: Sequence[Running]) -> None:
        """Steps in which every request opens a page, as one in `PAGE_TOKENS` does."""
        manager = self.manager
        for step in range(DECODED_PAGES):
            length = PREFIX_TOKENS + PROMPT_TOKENS + step * PAGE_TOKENS
            self._reserve("evict few", batch, length + 1)
            with self.samples.timed("decode", lambda: self.batch):
                for running in batch:
                    manager.slide(running, length)
                assert manager.reserve([(running, 1) for running in batch])
                manager.extend_each(batch)

    def _reserve(self, operation: str, batch: Sequence[Running], length: int) -> None:
        """Make the room beforehand, so that eviction is not timed with what it is for."""
        manager = self.manager
        before = _evicted(manager)
        with self.samples.timed(operation, lambda: _evicted(manager) - before):
            assert manager.reserve(
                [(running, manager.new_pages(running, length)) for running in batch]
            )


def _ask(budget: JengaPrefillBudget, new_tokens: int = PROMPT_TOKENS) -> bool:
    fits, _ = budget.check_prefill(
        extend_input_len=new_tokens,
        total_tokens=0,
        max_new_tokens=0,
        input_tokens=new_tokens,
        swa_host_hit_length=0,
        chunk_limit=None,
    )
    return fits


def _evicted(manager: Manager) -> int:
    """Small pages evicted so far, and those that fell with them."""
    counters = manager.counters
    return sum(counters.evicted.values()) + sum(counters.cascaded.values())
