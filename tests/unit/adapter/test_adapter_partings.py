"""Where requests that wait part from a prompt that is computed, a snapshot of states is left."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from adapter_builders import make_cache, offer
from core_builders import UNIT_BYTES, begin, tokens

from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running
from jenga_sglang.core.tiered_manager import TieredManager

PAGE = 2
PROMPT = range(100, 116)


@pytest.fixture
def cache() -> JengaPrefixCache:
    """A page of two tokens, or a state, takes one of sixty large pages."""
    rows = LayerGroupSpec("rows", (0,), Full(), UNIT_BYTES, 0)
    states = LayerGroupSpec("states", (1,), LastState(), state_bytes=(PAGE * UNIT_BYTES,))
    cuts = (GroupGeometry(rows, PAGE), GroupGeometry(states, PAGE))
    policy = CachePolicy(state_share_percent=0)
    geometry = Geometry(cuts, PAGE, 61 * PAGE * UNIT_BYTES)
    return make_cache(Manager(geometry, max_requests=4, max_length=64, policy=policy))


def over_host(
    cache: JengaPrefixCache, pages: int, policy: CachePolicy | None = None
) -> JengaPrefixCache:
    """The same over host memory of so many large pages, if any."""
    geometry = cache.manager.geometry
    host_bytes = (pages + 1) * geometry.large_page_bytes
    kwargs: Any = {"max_requests": 4, "max_length": 200, "policy": policy}
    if not pages:
        return make_cache(Manager(geometry, **kwargs))
    return make_cache(TieredManager(geometry, host_bytes=host_bytes, **kwargs))


@pytest.mark.parametrize("host_pages", [0, 60])
@pytest.mark.parametrize("has_room", [False, True])
def test_a_prompt_has_room_for_the_snapshots_that_it_will_leave(
    cache: JengaPrefixCache, host_pages: int, has_room: bool
) -> None:
    """Sixty large pages; one that runs holds 51 and may grow by none. Eight pages of tokens and a
    working state are what is left, or with a snapshot at the prompt's end, one where another parts
    from it and one for whoever comes next, five pages and a state."""
    cache = over_host(cache, host_pages, CachePolicy(0, snapshot_room=has_room))
    begin(cache.manager, tokens(range(100)))
    candidate = cache.lock(cache.manager.miss("other"))
    cache.admission.now.waiting = [request(range(200, 205), 9)]
    for pages in (8, 6, 5):
        cache.admission.now.offered = request(range(200, 200 + pages * PAGE))
        assert offer(cache, pages * PAGE) == (pages == 5 or not has_room)
    cache.admission.now.waiting = []
    cache.admission.now.offered = request(range(200, 200 + 6 * PAGE))
    assert offer(cache, 6 * PAGE), "nobody parts from it"
    cache.unlock(candidate)


def test_one_that_answered_before_it_was_retracted_may_have_more_than_its_prompt(
    cache: JengaPrefixCache,
) -> None:
    running = begin(cache.manager, tokens(PROMPT))
    begin(cache.manager, tokens(range(200, 204)))
    cache.admission.now.waiting = [request(PROMPT, 9, 9)]
    cache.admission.now.candidate = running
    for prompt in (PROMPT, range(100, 110)):
        cache.admission.now.offered = request(prompt)
        assert cache.admission.snapshots_to_come() == 1, "for whoever comes next"


@pytest.mark.parametrize("host_pages", [0, 60])
def test_one_that_runs_alone_may_take_all(cache: JengaPrefixCache, host_pages: int) -> None:
    cache = over_host(cache, host_pages)
    candidate = cache.lock(cache.manager.miss("other"))
    assert offer(cache, 59 * PAGE)
    cache.unlock(candidate)


def request(*parts: int | range, key: str | None = None, running: Running | None = None) -> Any:
    prompt = array("q", tokens(*parts).tolist())
    lock = SimpleNamespace(receipt=running)
    names = {"lora_id": None, "extra_key": key, "cache_salt": None}
    return SimpleNamespace(
        origin_input_ids=prompt, lock=lock, multimodal_inputs=None, req_pool_idx=0, **names
    )


def saved(cache: JengaPrefixCache, *waiting: Any) -> list[int]:
    cache.admission.now.waiting = waiting
    running = begin(cache.manager, tokens(PROMPT))
    cache.save_states(request(PROMPT, running=running), 0, len(PROMPT))
    return [length for length, _ in running.saves]


def test_a_snapshot_is_left_where_one_that_waits_goes_on_otherwise(cache: JengaPrefixCache) -> None:
    assert saved(cache) == [14]
    other = request(range(100, 107), 9, 9, 9)
    assert saved(cache, other, other) == [6, 14]
    twice = request(range(100, 111), 9)
    assert saved(cache, other, twice) == [6, 10, 14]


def test_one_that_waits_with_a_part_of_the_prompt_still_computes_its_last_token(
    cache: JengaPrefixCache,
) -> None:
    assert saved(cache, request(range(100, 106))) == [4, 14]
    assert saved(cache, request(range(100, 130))) == [14, 16]


def test_strangers_leave_nothing(cache: JengaPrefixCache) -> None:
    """One that begins otherwise, one of another namespace, and one that has nothing."""
    assert saved(cache, request(7, range(101, 130))) == [14]
    assert saved(cache, request(range(100, 109), key="other")) == [14]
    assert saved(cache, request(100)) == [14]
