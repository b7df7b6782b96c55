"""An overlapped server takes pages for a step's next tokens before it publishes the step: a prompt
that is asked again hits the same, whichever comes first."""

from array import array
from types import SimpleNamespace
from typing import Any

import core_inspector as inside
import numpy as np
import pytest
import torch
from adapter_builders import make_cache
from core_builders import make_manager
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey

from jenga_sglang.adapter.cache.batch_alloc import alloc_for_decode, alloc_for_extend
from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import ChunkedLocal, Dependency, Full, SlidingWindow

PAGE, LONGEST = 16, 600
KINDS: list[tuple[Dependency, ...]] = [
    (Full(), SlidingWindow(64)),
    (Full(), ChunkedLocal(64)),
]


class Served:
    """One request at a time, step by step."""

    def __init__(self, cache: JengaPrefixCache, length: int, *, publish: bool = True) -> None:
        self.cache, self.length = cache, length
        ids = array("q", range(length))
        key = RadixKey(ids[:-1], None)
        hit: Any = cache.match_prefix(MatchPrefixParams(key=key))
        self.hit_tokens: int = hit.device_prefix_len
        self.req: Any = SimpleNamespace(
            rid=str(length),
            priority=None,
            kv=SimpleNamespace(holds_kv=False, kv_allocated_len=0, kv_committed_len=0),
            lock=cache.lock(hit.last_device_node),
            lora_id=None,
            extra_key=None,
            cache_salt=None,
            multimodal_inputs=None,
            origin_input_ids=ids,
            output_ids=array("q"),
            full_untruncated_fill_ids=ids,
            skip_radix_cache_insert=not publish,
            finished=lambda: False,
        )

    def batch(self, length: int) -> Any:
        lengths = torch.tensor([length])
        rows = torch.tensor([getattr(self.req.kv, "req_pool_idx", 0)])
        return SimpleNamespace(
            tree_cache=self.cache,
            req_to_token_pool=self.cache.req_to_token_pool,
            model_config=SimpleNamespace(is_encoder_decoder=False),
            reqs=[self.req],
            prefix_lens=[self.hit_tokens],
            seq_lens=lengths,
            seq_lens_cpu=lengths,
            req_pool_indices=rows,
            req_pool_indices_cpu=rows,
            device="cpu",
        )

    def prefill(self) -> None:
        alloc_for_extend(self.batch(self.length))

    def publish(self) -> None:
        if not self.req.skip_radix_cache_insert:
            self.cache.checkpoint(self.req, up_to=self.length)

    def decode(self) -> None:
        alloc_for_decode(self.batch(self.req.kv.kv_committed_len), token_per_req=1)

    def end(self) -> None:
        self.cache.unlock(self.req.lock)
        self.cache.manager.check_idle()


def make_served_cache(*kinds: Dependency, num_large: int, window_layers: int) -> JengaPrefixCache:
    layers = [1, window_layers]
    manager = make_manager(
        *kinds, num_large=num_large, page_size=PAGE, layers=layers, stripes=layers
    )
    cache = make_cache(manager)
    cache.req_to_token_pool = ReqToTokenPool(3, LONGEST, "cpu", enable_memory_saver=False)
    return cache


@pytest.fixture(params=KINDS, ids=lambda kinds: " and ".join(map(str, kinds)))
def cache(request: pytest.FixtureRequest) -> JengaPrefixCache:
    return make_served_cache(*request.param, num_large=200, window_layers=1)


@pytest.mark.parametrize("length", [15, 16, 63, 64, 65, 383, 384, 385, 400, 512])
def test_the_same_prompt_hits_all_but_its_last_page(cache: JengaPrefixCache, length: int) -> None:
    first = Served(cache, length)
    assert first.hit_tokens == 0
    for step in (first.prefill, first.decode, first.publish, first.decode):
        step()
    row = cache.req_to_token_pool.req_to_token[first.req.kv.req_pool_idx, :length]
    pages = first.req.lock.receipt.row[: -(-length // PAGE)]
    assert np.array_equal(row, cache.token_ids(pages)[:length])
    first.end()
    again = Served(cache, length)
    assert again.hit_tokens == (length - 1) // PAGE * PAGE
    again.end()


def test_who_publishes_nothing_holds_nothing_for_it(cache: JengaPrefixCache) -> None:
    one = Served(cache, 384, publish=False)
    for step in (one.prefill, one.decode):
        step()
    held = sum(r.size for r in one.req.lock.receipt.held[1])
    assert held <= cache.manager.dependencies[1].peak_pages(LONGEST, PAGE)
    one.end()


def test_what_the_same_prompt_hits_is_as_fresh_as_its_end() -> None:
    """The 23 pages that it hits are no older than the page that it computes again: what goes
    first is what only shorter hits would need."""
    cache = make_served_cache(*KINDS[0], num_large=2000, window_layers=50)
    served = Served(cache, 384)
    assert cache.manager.prompt_slack(384) == 0
    served.prefill()
    served.publish()
    served.end()
    hit = cache.manager.match(Namespace(None, None, None), np.arange(384))
    pages = inside.path_pages(cache.manager, hit.path)
    memory = inside.memory(cache.manager)
    large = [int(memory.large_pages(1, pages[place : place + 1])[0]) for place in range(24)]
    times = memory.lru.time[large]
    window = range(23 - 4, 23)
    assert {int(times[place]) for place in window} == {int(times[23])}
    assert times[18] < times[23]
