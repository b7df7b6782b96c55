"""A request that runs alone always begins, also where its own hit is what keeps it out."""

from array import array
from types import SimpleNamespace
from typing import Any

import core_inspector as inside
import pytest
from adapter_builders import make_cache, make_scheduler
from core_builders import grow, make_manager, tokens
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager

NAMESPACE = Namespace(None, None, None)
PAGE, SHARED_PAGES = 4, 6
PROMPT = tokens(range(PAGE * SHARED_PAGES), range(900, 904))


@pytest.fixture
def cache() -> JengaPrefixCache:
    """Eleven large pages, each of one small page of the window's layers or of four of the full
    layer's, whose six pages of a document lie in six large pages."""
    manager = make_manager(Full(), SlidingWindow(12), num_large=11, page_size=PAGE, layers=[1, 4])
    for pages in range(1, SHARED_PAGES + 1):
        own = range(1000 * pages, 1000 * pages + PAGE)
        compute(manager, tokens(range(PAGE * pages), own))
    assert inside.num_owned(manager)[0] == SHARED_PAGES
    return make_cache(manager)


def compute(manager: Manager, history: Ids) -> None:
    running = manager.lock(manager.match(NAMESPACE, history[:-1]))
    grow(manager, running, len(history))
    manager.publish(running, NAMESPACE, history)
    manager.release(running)


def match(cache: JengaPrefixCache, prompt: Ids) -> Any:
    key = RadixKey(array("q", prompt[:-1].tolist()), None)
    return cache.match_prefix(MatchPrefixParams(key=key))


def consider(cache: JengaPrefixCache) -> tuple[int, bool]:
    """As SGLang considers the prompt in a pass: tokens that it hits, and whether it may begin."""
    with cache.admission.passing(make_scheduler()):
        hit: Any = match(cache, PROMPT)
        lock = cache.lock(hit.last_device_node)
        length = len(PROMPT)
        admitted, _ = JengaPrefillBudget(cache.admission).check_prefill(
            extend_input_len=length - hit.device_prefix_len,
            total_tokens=0,
            max_new_tokens=1,
            input_tokens=length,
            swa_host_hit_length=0,
            chunk_limit=PAGE,
        )
        cache.unlock(lock)
    return hit.device_prefix_len, admitted


def pass_by(cache: JengaPrefixCache) -> None:
    """A pass in which nobody is considered."""
    with cache.admission.passing(make_scheduler()):
        pass


def test_a_prefix_that_lies_scattered_is_given_up(cache: JengaPrefixCache) -> None:
    assert consider(cache) == (PAGE * SHARED_PAGES, False)
    assert consider(cache) == (0, True)
    assert inside.find(cache.manager, NAMESPACE, PROMPT).num_pages == 0, (
        "nothing is left to merge with"
    )
    cache.manager.check_idle()


def test_while_others_run_it_waits_for_them(cache: JengaPrefixCache) -> None:
    other = cache.manager.lock(cache.manager.miss(NAMESPACE))
    for _ in range(2):
        assert consider(cache) == (PAGE * SHARED_PAGES, False)
    cache.manager.release(other)
    assert consider(cache) == (PAGE * SHARED_PAGES, False)
    assert consider(cache) == (0, True)


def test_nobody_is_forgotten_while_the_queue_is_matched(cache: JengaPrefixCache) -> None:
    """SGLang's depth-first policy leaves out whose node is not in the tree any more. Another
    request waits for what follows the prefix that is given up, and is matched before it."""
    longer = tokens(range(PAGE * SHARED_PAGES), range(6000, 6000 + PAGE), 0)
    assert consider(cache) == (PAGE * SHARED_PAGES, False)
    for _ in range(2):
        waiting: list[Any] = [
            SimpleNamespace(number=number, last_node=match(cache, prompt).last_device_node)
            for number, prompt in enumerate((longer, PROMPT))
        ]
        SchedulePolicy._sort_by_dfs_weight(waiting, cache)
        assert sorted(req.number for req in waiting) == [0, 1]
        pass_by(cache)


def test_a_prefix_is_given_up_in_the_next_pass_or_not_at_all(cache: JengaPrefixCache) -> None:
    """Its request may have gone by then, and the prefix fit others well."""
    assert consider(cache) == (PAGE * SHARED_PAGES, False)
    other = cache.manager.lock(cache.manager.miss(NAMESPACE))
    pass_by(cache)
    cache.manager.release(other)
    pass_by(cache)
    assert match(cache, PROMPT).device_prefix_len == PAGE * SHARED_PAGES
