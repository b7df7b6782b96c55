"""Which prefixes a request is shown, by its adapter and its caller's keys."""

from array import array
from itertools import product

import pytest
from adapter_builders import make_cache
from core_builders import grow, make_manager, tokens
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.common import match_kv_cache
from sglang.srt.sampling.sampling_params import SamplingParams

from jenga_sglang.adapter.cache.namespace import history
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import Full

HISTORY = array("q", range(12))
ADAPTER, OTHER = "a" * 32, "b" * 32
KEYS = (None, "key", ADAPTER, f"key{ADAPTER}", OTHER)
# Adapter, caller's key, salt: each pair of these must be strangers to each other.
CALLERS = list(product((None, ADAPTER, OTHER), KEYS, (None, "salt", ADAPTER)))


@pytest.fixture
def cache() -> JengaPrefixCache:
    return make_cache(make_manager(Full(), num_large=200, page_size=4))


def request(caller: tuple[str | None, str | None, str | None]) -> Req:
    """SGLang's own request, which joins the key and the adapter's id into one string."""
    adapter, key, salt = caller
    return Req("r", "", HISTORY, SamplingParams(), lora_id=adapter, extra_key=key, cache_salt=salt)


def serve(cache: JengaPrefixCache, req: Req) -> None:
    """Compute the request's history, put it into the tree, end."""
    computed, manager = tokens(HISTORY), cache.manager
    running = manager.lock(manager.match(history(req, req), computed[:-1]))
    grow(manager, running, len(computed))
    manager.publish(running, history(req, req), computed)
    manager.release(running)


def hit_tokens(cache: JengaPrefixCache, req: Req) -> int:
    return int(match_kv_cache(req, cache).device_prefix_len)


def test_a_caller_hits_its_own_prefixes_and_nobody_elses(cache: JengaPrefixCache) -> None:
    for caller in CALLERS:
        assert hit_tokens(cache, request(caller)) == 0, caller
        serve(cache, request(caller))
        assert hit_tokens(cache, request(caller)) == 12, caller


def test_a_key_alone_names_no_adapters_prefixes(cache: JengaPrefixCache) -> None:
    serve(cache, request((ADAPTER, None, None)))
    assert hit_tokens(cache, request((None, ADAPTER, None))) == 0
    assert request((None, ADAPTER, None)).extra_key == request((ADAPTER, None, None)).extra_key
