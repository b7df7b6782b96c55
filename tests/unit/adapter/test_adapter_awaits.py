"""Who waits for a prefix that another request is computing, and who does not."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from adapter_builders import make_cache, make_scheduler
from core_builders import make_geometry, tokens

from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.adapter.cache.waiting import queue_facts
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy

LEAST = 8
TEXT = range(100, 140)


def request(rid: str, *parts: int | range, hit: int = 0, **others: Any) -> Any:
    prompt = array("q", tokens(*parts).tolist())
    names = {"lora_id": None, "extra_key": None, "cache_salt": None, "multimodal_inputs": None}
    counts = {"prefix_len": hit, "host_hit_length": 0, "output_ids": array("q")}
    usable = {"_compute_max_prefix_len": lambda length: length - 1}
    facts = names | counts | usable | {"positional_embed_overrides": None}
    return SimpleNamespace(
        rid=rid, origin_input_ids=prompt, full_untruncated_fill_ids=prompt, **facts | others
    )


def cache_with(least: int = LEAST, **options: bool) -> JengaPrefixCache:
    geometry, policy = make_geometry([Full()], 40, page_size=4), CachePolicy(awaited_tokens=least)
    return make_cache(Manager(geometry, max_requests=8, max_length=100, policy=policy, **options))


@pytest.fixture
def cache() -> JengaPrefixCache:
    return cache_with()


FIRST = request("first", TEXT, 1, 2)


@pytest.mark.parametrize(
    ("req", "waits"),
    [
        (request("b", TEXT, 3), True),
        (request("b", range(100, 108), 3), True),
        (request("b", range(100, 107), 3), False),
        (request("b", range(100, 108)), False),  # its last token is computed all the same
        (request("b", TEXT, 3, hit=32), True),
        (request("b", TEXT, 3, hit=33), False),
        (request("b", TEXT, 3, hit=16, host_hit_length=17), False),
        (request("b", 7, range(101, 140)), False),
        (request("b", TEXT, 3, cache_salt="mine"), False),
        (request("b", TEXT, 3, lora_id="adapter"), False),
        # It asks for the logprobs of its prompt from the fifth token on.
        (request("b", TEXT, 3, _compute_max_prefix_len=lambda length: 5), False),
        (request("b", TEXT, 3, positional_embed_overrides=()), False),
    ],
)
def test_who_will_hit_enough_more_waits(cache: JengaPrefixCache, req: Any, waits: bool) -> None:
    assert cache.admission.awaits(req, [request("a", 5), FIRST]) == waits
    assert not cache.admission.awaits(req, [])


def test_nobody_waits_where_that_is_off() -> None:
    for cache in (cache_with(prefix_cache=False), cache_with(0)):
        assert not cache.admission.awaits(request("b", TEXT, 3), [FIRST])


def test_what_is_in_flight_counts_until_its_first_token_is_known(cache: JengaPrefixCache) -> None:
    waiting = request("b", TEXT, 3)
    with cache.admission.passing(make_scheduler(waiting=[waiting]), [FIRST]):
        assert cache.admission.awaits(waiting, [])
    answering = request("first", TEXT, output_ids=array("q", [1]))
    with cache.admission.passing(make_scheduler(waiting=[waiting]), [answering]):
        assert not cache.admission.awaits(waiting, [])


def test_it_waits_for_one_other_in_its_life(cache: JengaPrefixCache) -> None:
    """Or requests with the same beginning that hit more of it could overtake it for ever."""
    waiting, second = request("b", TEXT, 3), request("second", TEXT, 4)
    for _ in range(3):
        with cache.admission.passing(make_scheduler(waiting=[waiting])):
            assert cache.admission.awaits(waiting, [FIRST, second])
    assert cache.manager.counters.awaited_tokens == len(TEXT)
    for _ in range(3):
        with cache.admission.passing(make_scheduler(waiting=[waiting])):
            assert not cache.admission.awaits(waiting, [second])
    with cache.admission.passing(make_scheduler(waiting=[])) as passing:
        assert not passing.awaited, "it was admitted, or has left"


def test_why_it_waits_is_said(cache: JengaPrefixCache) -> None:
    params = SimpleNamespace(max_new_tokens=1)
    waiting = request(
        "b", TEXT, 3, sampling_params=params, time_stats=SimpleNamespace(wait_queue_entry_time=0.0)
    )
    with cache.admission.passing(make_scheduler(waiting=[waiting])):
        assert cache.admission.awaits(waiting, [FIRST])
    scheduler: Any = SimpleNamespace(
        waiting_queue=[waiting],
        tree_cache=cache,
        running_batch=SimpleNamespace(reqs=[FIRST]),
        chunked_req=None,
        max_running_requests=8,
        grammar_manager=SimpleNamespace(grammar_queue=[]),
        _engine_paused=False,
        forward_ct=1,
    )
    head = queue_facts(scheduler)["head"]
    assert (head["answer"], head["cause"]) == ("later", "prefix")
