"""SGLang's scheduling policies walk the prefix cache, which has a root for every namespace."""

from adapter_builders import make_cache
from core_builders import make_manager, serve, tokens

from jenga_sglang.core.dependency import Full

PAGE = 4
LONG, SHORT, OTHER = tokens(range(16)), tokens(range(50, 54)), tokens(range(70, 78))


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
