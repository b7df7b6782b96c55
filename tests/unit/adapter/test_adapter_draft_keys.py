"""With a draft model, a page is hit only where the token behind it is the same as well: what the
draft keeps of the page's last token was made of that."""

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from adapter_builders import make_cache
from core_builders import make_manager
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey

from jenga_sglang.adapter.cache.keys import paired, single
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import Full

PAGE = 4


def make(draft_layers: list[int]) -> JengaPrefixCache:
    cache = make_cache(make_manager(Full(), num_large=40, page_size=PAGE), draft_layers)
    cache.req_to_token_pool = ReqToTokenPool(
        size=4, max_context_len=100, device="cpu", enable_memory_saver=False
    )
    return cache


def hit_tokens(cache: JengaPrefixCache, *tokens: int, limit: int | None = None) -> int:
    key = RadixKey(array("q", tokens), None, limit=limit)
    result: Any = cache.match_prefix(MatchPrefixParams(key=key))
    return result.device_prefix_len


def request(cache: JengaPrefixCache, *prompt: int, outputs: tuple[int, ...] = ()) -> Any:
    """One that has computed its prompt."""
    manager = cache.manager
    running = manager.lock(manager.miss((None, None, None)))
    assert manager.reserve([(running, manager.new_pages(running, len(prompt)))])
    manager.extend(running, len(prompt))
    return SimpleNamespace(
        lock=SimpleNamespace(receipt=running),
        kv=SimpleNamespace(req_pool_idx=1),
        lora_id=None,
        extra_key=None,
        cache_salt=None,
        multimodal_inputs=None,
        origin_input_ids=array("q", prompt),
        output_ids=array("q", outputs),
        full_untruncated_fill_ids=array("q", prompt),
        finished=lambda: False,
    )


@pytest.mark.parametrize(("draft_layers", "hit"), [([], 8), ([7], 4)])
def test_a_history_that_parts_at_the_end_of_a_page(draft_layers: list[int], hit: int) -> None:
    cache = make(draft_layers)
    cache.checkpoint(request(cache, *range(12)), up_to=12)
    assert hit_tokens(cache, *range(8), 99, 99) == hit
    assert hit_tokens(cache, *range(9), 99) == 8


@pytest.mark.parametrize(("outputs", "hit"), [((), 4), ((50,), 8)])
def test_the_last_page_waits_for_the_token_behind_it(outputs: tuple[int, ...], hit: int) -> None:
    cache = make([7])
    cache.checkpoint(request(cache, *range(8), outputs=outputs), up_to=8)
    assert hit_tokens(cache, *range(8), 50, 99) == hit


def test_a_chunk_of_a_prompt_has_its_pages() -> None:
    cache = make([7])
    cache.checkpoint(request(cache, *range(12)), up_to=8)
    assert hit_tokens(cache, *range(20)) == 8


@pytest.mark.parametrize("draft_layers", [[], [7]])
def test_a_limit_is_one_of_tokens_and_what_is_behind_it_is_known(draft_layers: list[int]) -> None:
    cache = make(draft_layers)
    cache.checkpoint(request(cache, *range(12)), up_to=12)
    assert hit_tokens(cache, *range(12), limit=8) == 8
    assert hit_tokens(cache, *range(12), limit=7) == 4


def test_who_waits_is_looked_up_with_the_same_keys() -> None:
    cache = make([7])
    cache.checkpoint(request(cache, *range(12)), up_to=12)
    seen = []
    cache.admission.lookahead.look = lambda rids, read: seen.append(read(0))  # type: ignore[method-assign]
    waiting = request(cache, *range(9))
    waiting.rid = "next"
    cache.admission.now.waiting = [waiting]
    cache.admission.look_ahead()
    ((namespace, keys),) = seen
    assert cache.manager.match(namespace, keys).path.num_pages == 2


def test_pairs_of_no_token_and_of_one_are_none() -> None:
    for known in range(3):
        tokens = np.arange(known, dtype=np.int64)
        assert len(paired(tokens, known)) == max(0, known - 1)
        assert len(single(tokens, known)) == known


def test_different_pairs_are_different_keys() -> None:
    largest = (1 << 31) - 1
    values = [0, 1, largest]
    pairs = {int(paired(np.array([a, b]), 1)[0]) for a in values for b in values}
    assert len(pairs) == 9 and min(pairs) >= 0


@pytest.mark.parametrize(("verified", "steps"), [(0, 30), (12, 12)])
def test_an_answer_takes_a_step_a_token_and_with_drafts_as_many_as_verified_them(
    verified: int, steps: int
) -> None:
    cache = make_cache(make_manager(Full(), num_large=4))
    counters = cache.manager.counters
    before = counters.mean_decode_steps
    req: Any = SimpleNamespace(
        kv=SimpleNamespace(req_pool_idx=0),
        finished=lambda: True,
        output_ids=[0] * 30,
        spec_verify_ct=verified,
    )
    cache.on_release(req, checkpointed=True)
    assert counters.mean_decode_steps == before + (steps - before) / 64
