"""Snapshots that follow answers are for times when memory is not short."""

from types import SimpleNamespace
from typing import Any

import pytest
from adapter_builders import make_cache, offer
from core_builders import UNIT_BYTES, begin, grow, tokens

from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Full, LastState
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

PAGE, NUM_LARGE = 4, 12


@pytest.fixture
def cache() -> JengaPrefixCache:
    """Twelve large pages: one for four tokens, or for one state."""
    rows = LayerGroupSpec("rows", (0,), Full(), UNIT_BYTES, 0)
    states = LayerGroupSpec("states", (1,), LastState(), state_bytes=(PAGE * UNIT_BYTES,))
    cuts = (GroupGeometry(rows, PAGE), GroupGeometry(states, PAGE))
    geometry = Geometry(cuts, PAGE, (NUM_LARGE + 1) * PAGE * UNIT_BYTES)
    policy = CachePolicy(answer_state_tokens=4)
    return make_cache(Manager(geometry, max_requests=4, max_length=64, policy=policy))


def decode(cache: JengaPrefixCache, prompt: int, stop: int) -> Running:
    """A request, computed up to ``stop`` tokens one by one after its ``prompt``."""
    running = begin(cache.manager, tokens(range(prompt)))
    lock = SimpleNamespace(receipt=running)
    req: Any = SimpleNamespace(lock=lock, origin_input_ids=[0] * prompt)
    for length in range(prompt + 1, stop + 1):
        grow(cache.manager, running, length)
        cache.save_states(req, length - 1, length)
    return running


def test_nothing_follows_an_answer_while_somebody_waits(cache: JengaPrefixCache) -> None:
    queue: list[Any] = [SimpleNamespace(rid="waits")]
    cache.admission.now.waiting = queue
    assert decode(cache, 3, 9).answer_page == 0
    queue.clear()
    assert decode(cache, 3, 9).answer_page == 2


def test_who_would_not_fit_otherwise_gets_what_followed_an_answer(cache: JengaPrefixCache) -> None:
    """Three pages, a working state and what follows leave seven; six pages and a state do not need
    more, seven do."""
    running = decode(cache, 3, 9)
    candidate = cache.lock(cache.manager.miss(Namespace(None, None, None)))
    assert offer(cache, 24) and running.answer_page
    with cache.admission.asking():
        assert not offer(cache, 28) and running.answer_page, "a question changes nothing"
    assert offer(cache, 28) and not running.answer_page
    assert JengaPrefillBudget(cache.admission).has_capacity()
    cache.unlock(candidate)
    cache.manager.release(running)
    cache.manager.check_idle()
