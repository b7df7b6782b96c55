"""Host memory in numbers: what every group holds there, and what went there and came back.

Read only. Bytes add up, whatever happens::

    Σ_g (cached + free)[g] + free + unusable == host_bytes
"""

from __future__ import annotations

from typing import Any

from jenga_sglang.core.manager import Manager
from jenga_sglang.core.tiered_manager import TieredManager


def host_stats(manager: Manager) -> dict[str, Any] | None:
    """The state of the host and of every group there, as plain integers, units in the names; None
    where there is no host tier."""
    if not isinstance(manager, TieredManager):
        return None
    geometry, books, counters = manager.host_geometry, manager.memory.host, manager.tier_counters
    groups = [_group_stats(manager, g) for g in manager.needs.groups]
    large_bytes = geometry.large_page_bytes
    return {
        "host_bytes": geometry.pool_bytes,
        "write_policy": manager.write_policy.value,
        "num_large_pages": books.large.num_large,
        "free_large_pages": books.large.num_free,
        "free_bytes": books.large.num_free * large_bytes,
        "unusable_bytes": geometry.pool_bytes - books.large.num_large * large_bytes,
        "hit_tokens": counters.host_hit_tokens,
        "declined_loads": counters.declined_loads,
        "not_worth_loads": counters.not_worth_loads,
        "copied_bytes_per_second": manager.prices.copies.per_second,
        "prompt_tokens_per_second": manager.prices.prompts.per_second,
        "written_bytes": sum(group["written_bytes"] for group in groups),
        "loaded_bytes": sum(group["loaded_bytes"] for group in groups),
        "groups": groups,
    }


def _group_stats(manager: TieredManager, group: int) -> dict[str, Any]:
    cut, large = manager.host_geometry.groups[group], manager.memory.host.large
    counters, evicted = manager.tier_counters, manager.tiers.evictor.counters
    return {
        "name": cut.spec.name,
        "large_pages": large.num_owned[group],
        "cached_bytes": large.num_held[group] * cut.small_page_bytes,
        "free_bytes": large.num_holes(group) * cut.small_page_bytes,
        "written_bytes": counters.written[group] * cut.page_bytes,
        "loaded_bytes": counters.loaded[group] * cut.page_bytes,
        "evicted_pages": evicted.evicted[group],
        "cascaded_pages": evicted.cascaded[group],
        "not_written_pages": counters.not_written[group],
    }
