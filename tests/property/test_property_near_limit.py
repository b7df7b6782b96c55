"""A request that fits into an empty pool gets to its end when it runs alone, whatever is cached:
it is admitted, its prompt goes on chunk by chunk, and it decodes to the longest promised, with
drafts behind that or without."""

import random
from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from adapter_builders import make_cache, make_scheduler
from core_builders import make_manager, tokens
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.admission import longest_request
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running

NAMESPACE = Namespace(None, None, None)
WORLDS, REQUESTS = 60, 20


class World:
    """A small pool of random groups, and requests one by one that take nearly all of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.page_size = self.random.choice((4, 8, 16))
        self.chunk = self.page_size * self.random.choice((2, 4, 8))
        self.longest = 0
        while self.longest < 8 * self.page_size:
            self.manager = self._manager()
            self.manager.tail_tokens = self.random.choice((0, 0, 6, 3 * self.page_size))
            self.longest = longest_request(self.manager, self.chunk)
        self.cache: JengaPrefixCache = make_cache(self.manager)
        self.documents = [self._tokens(self.longest) for _ in range(3)]

    def _manager(self) -> Manager:
        draw, page = self.random, self.page_size
        kinds: tuple[Dependency, ...] = (
            *(SlidingWindow(tokens) for tokens in (2 * page, 3 * page, 5 * page - 3)),
            ChunkedLocal(4 * page),
        )
        dependencies = [Full(), *draw.choices(kinds, k=draw.choice((0, 1, 1, 2)))]
        layers = [draw.choice((1, 2, 3, 5)) for _ in dependencies]
        return make_manager(
            *dependencies,
            num_large=draw.randrange(20, 70),
            page_size=page,
            layers=layers,
            stripes=[draw.choice((1, count)) for count in layers],
            max_length=4096,
        )

    def _tokens(self, count: int) -> Tokens:
        return np.array(self.random.choices(range(200), k=count), np.int64)

    def prompt(self) -> Tokens:
        """The beginning of a document and tokens of its own, half the time as long as can be."""
        draw = self.random
        length = self.longest - 1
        length = draw.choice((length - draw.randrange(3), draw.randrange(1, length)))
        document = draw.choice(self.documents)[: draw.randrange(1, self.longest)]
        return tokens(document, self._tokens(self.longest))[:length]

    def run(self, prompt: Tokens) -> None:
        manager, cache = self.manager, self.cache
        lock = self._admit(prompt)
        running = lock.receipt
        req: Any = SimpleNamespace(lock=lock, full_untruncated_fill_ids=prompt)
        start = done = running.length
        while done < len(prompt):
            # With --enable-mixed-chunk the tokens that others decode come off a chunk.
            decoding = self.random.randrange(3)
            step = min(self.chunk - decoding, len(prompt) - done)
            if done > start:
                left = len(prompt) - done
                with cache.admission.passing(make_scheduler(req, chunk_tokens=self.chunk)):
                    assert JengaPrefillBudget(cache.admission).fit_chunk(
                        extend_input_len=left, max_new_tokens=0, chunk_limit=self.chunk
                    ), f"a chunk at {done} of {len(prompt)} waits for ever"
            manager.slide(running, done)
            done += step
            assert manager.reserve([(running, manager.new_pages(running, done))], [[done]])
            manager.extend(running, done)
            manager.publish(running, NAMESPACE, prompt[:done], None if done == len(prompt) else [])
        (self._draft if manager.tail_tokens else self._decode)(running, done)
        cache.unlock(lock)
        manager.check_idle()

    def _decode(self, running: Running, done: int) -> None:
        manager = self.manager
        for length in range(done, self.longest):
            manager.slide(running, length)
            assert manager.reserve([(running, manager.new_pages(running, length + 1))]), (
                "no room to decode"
            )
            manager.extend(running, length + 1)

    def _draft(self, running: Running, done: int) -> None:
        manager, tail_tokens = self.manager, self.manager.tail_tokens
        while done < self.longest:
            manager.commit(running, done)
            stop = done + tail_tokens
            assert manager.reserve([(running, manager.new_pages(running, stop))]), (
                "no room for drafts"
            )
            manager.extend_tail(running, stop)
            done = min(self.longest, done + self.random.randint(1, tail_tokens // 2))

    def _admit(self, prompt: Tokens) -> Any:
        """The lock with which ``prompt`` begins, in the first pass or the second."""
        for _ in range(2):
            key = RadixKey(array("q", prompt[:-1].tolist()), None)
            with self.cache.admission.passing(make_scheduler(chunk_tokens=self.chunk)):
                hit: Any = self.cache.match_prefix(MatchPrefixParams(key=key))
                lock = self.cache.lock(hit.last_device_node)
                admitted, _ = JengaPrefillBudget(self.cache.admission).check_prefill(
                    extend_input_len=len(prompt) - hit.device_prefix_len,
                    total_tokens=0,
                    max_new_tokens=self.longest - len(prompt),
                    input_tokens=len(prompt),
                    swa_host_hit_length=0,
                    chunk_limit=self.chunk,
                )
            if admitted:
                return lock
            self.cache.unlock(lock)
        pytest.fail(f"a prompt of {len(prompt)} of {self.longest} tokens waits for ever")


@pytest.mark.parametrize("seed", range(WORLDS))
def test_who_fits_alone_gets_to_the_end(seed: int) -> None:
    world = World(seed)
    for _ in range(REQUESTS):
        world.run(world.prompt())


@pytest.mark.long
def test_who_fits_alone_gets_to_the_end_in_many_worlds() -> None:
    for seed in range(WORLDS, 2000):
        test_who_fits_alone_gets_to_the_end(seed)
