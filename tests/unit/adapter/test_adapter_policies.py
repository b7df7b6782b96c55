"""SGLang's scheduling policies walk the prefix cache, which has a root for every namespace."""

from types import SimpleNamespace

import torch
from core_builders import make_manager, serve, tokens

from jenga_sglang.adapter.prefix_cache import JengaPrefixCache
from jenga_sglang.core.dependency import Full
from jenga_sglang.core.manager import Manager

PAGE = 4
LONG, SHORT, OTHER = tokens(range(16)), tokens(range(50, 54)), tokens(range(70, 78))


def make_cache(manager: Manager) -> JengaPrefixCache:
    pool = SimpleNamespace(pin_of_row={})
    params = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(4, 32)),
        token_to_kv_pool_allocator=SimpleNamespace(device="cpu", get_kvcache=lambda: pool),
        page_size=PAGE,
        enable_kv_cache_events=False,
        enable_metrics=False,
    )
    return JengaPrefixCache(params, manager)


def test_depth_first_by_weight_names_every_request_once() -> None:
    """The history that three wait for comes before the one that one waits for; who has no history,
    or one in a namespace of its own, is not forgotten."""
    manager = make_manager(Full(), num_large=40, page_size=PAGE)
    for history in (SHORT, LONG):
        serve(manager, history)
    serve(manager, OTHER, namespace="other")
    cache = make_cache(manager)
    waiting = [SHORT, LONG, LONG[:12], OTHER, LONG]
    hits = [manager.match(None, history) for history in waiting]
    hits[3] = manager.match("other", OTHER)
    hits.append(manager.match("new", LONG))
    order = cache.dfs_weight_order(hits)
    assert sorted(order) == list(range(6))
    assert max(order.index(i) for i in (1, 2, 4)) < order.index(0)
