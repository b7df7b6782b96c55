"""The allocator itself agrees with the planner's arithmetic."""

import core_inspector as inside
import pytest
from plan_configs import GIB, load

from jenga_sglang.core.cut.demand import large_pages
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.manager import Manager

LENGTHS = (4096, 8176)
CHUNK = 2048  # tokens of prefill at a time


@pytest.mark.parametrize(
    ("name", "options", "pool_bytes"),
    [
        ("gemma-3-27b", {}, 40 * GIB),
        ("gemma-4-e4b", {}, 2 * GIB),
        ("mimo-v2-flash", {}, 2 * GIB),
        ("llama-4-scout", {}, 10 * GIB),
        ("mistral-7b-v0.1", {"window": "config"}, 6 * GIB),
    ],
)
def test_running_requests_hold_the_large_pages_that_were_planned(
    name: str, options: dict[str, object], pool_bytes: int
) -> None:
    """Requests prefilled in chunks and one token further, with what slides out of their windows
    let go, hold what `core.cut.demand` says. A window's pages may lie in one large page more than
    they fill."""
    model = load(name, **options)
    plan = plan_geometry(model.specs, pool_bytes=pool_bytes, max_length=131072, page_size=16)
    geometry = plan.geometry
    manager = Manager(geometry, max_requests=8, max_length=16384, prefix_cache=False)
    expected = 0
    for length in LENGTHS:
        expected += large_pages(geometry.groups, geometry.large_page_bytes, length + 1)
        running = manager.lock(manager.miss(None))
        for stop in (*range(CHUNK, length + 1, CHUNK), length + 1):
            assert manager.reserve([(running, manager.new_pages(running, stop))])
            manager.extend(running, stop)
            manager.slide(running, stop)
    manager.check()
    taken = inside.num_large(manager) - inside.num_free(manager)
    assert expected <= taken <= expected + len(LENGTHS)
