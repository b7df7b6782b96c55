"""Room for the next chunk of a prompt: it is asked for first, and refused it keeps everybody out,
so nothing but what others really use may be in its way."""

from types import SimpleNamespace
from typing import Any

import pytest
from adapter_builders import make_cache, make_scheduler
from core_builders import begin, grow, make_geometry, make_manager, serve, tokens

from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.core.admission import step_pages
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.core.running import Running

PAGE, CHUNK = 4, 16
SHARED = tokens(range(32))


def chunk_fits(manager: Manager, running: Running, prompt_tokens: int) -> bool:
    """Whether the next chunk of a prompt, computed as far as ``running``, is let in."""
    cache = make_cache(manager)
    req: Any = SimpleNamespace(
        lock=SimpleNamespace(receipt=running), full_untruncated_fill_ids=[0] * prompt_tokens
    )
    left = prompt_tokens - running.length
    with cache.admission.passing(make_scheduler(req, chunk_tokens=CHUNK)):
        budget = JengaPrefillBudget(cache.admission)
        fits = budget.fit_chunk(extend_input_len=left, max_new_tokens=0, chunk_limit=CHUNK)
    return fits is not None


@pytest.mark.parametrize("computed", [16, 18])
@pytest.mark.parametrize("left", [1, 5, 8, 14])
def test_a_prompt_may_take_the_last_page(computed: int, left: int) -> None:
    pages = -(-(computed + left) // PAGE)
    for num_large in (pages, pages - 1):
        manager = make_manager(Full(), num_large=num_large, page_size=PAGE)
        if num_large * PAGE < computed:
            continue
        running = begin(manager, tokens(range(computed)))
        fits = num_large == pages or -(-computed // PAGE) == pages
        assert chunk_fits(manager, running, computed + left) == fits


def test_what_windows_have_passed_is_gone_also_without_a_prefix_cache() -> None:
    manager = make_manager(SlidingWindow(4), num_large=5, page_size=PAGE)
    manager.prefix_cache = False
    running = begin(manager, tokens(range(16)))
    assert chunk_fits(manager, running, 32)


def test_what_is_held_for_others_gives_way() -> None:
    """The prompt holds two pages of its window where it left another, and lacks two."""
    geometry = make_geometry([Full(), SlidingWindow(8)], 26, page_size=PAGE)
    policy = CachePolicy(step_cost_tokens=0)
    manager = Manager(geometry, max_requests=8, max_length=1000, policy=policy)
    serve(manager, tokens(SHARED, range(100, 116)))
    begin(manager, tokens(range(300, 308)))
    prompt = tokens(SHARED, range(200, 232))
    running = manager.lock(manager.match(None, prompt[:-1]))
    grow(manager, running, 48)
    manager.publish(running, None, prompt[:48], [])
    assert sum(r.size for r in running.held_for_others[1]) == 2
    assert not manager.can_serve(step_pages(manager, 4))
    assert chunk_fits(manager, running, len(prompt))
    assert not any(running.held_for_others)
