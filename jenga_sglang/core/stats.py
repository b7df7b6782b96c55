"""The pool in numbers: what every group holds, what it lost, and a map of the large pages.

Read only, and all of it integers. Bytes add up, whatever happens::

    Σ_g (used + cached + free)[g] + free + unusable == pool_bytes

``free`` of a group are the holes in large pages that it owns: nobody else can use them. ``waste``
is the part of used and cached that holds nothing: padding, and token slots nobody has written, but
for those that wait for drafts (``draft``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jenga_sglang.core.books.large_pages import LargePages
from jenga_sglang.core.manager import Manager

MAP_LEVELS = 15


def pool_stats(manager: Manager) -> dict[str, Any]:
    """The state of the pool and of every group, as plain integers, units in the names."""
    geometry, books = manager.geometry, manager.memory.large
    large_bytes = geometry.large_page_bytes
    counters = manager.counters
    return {
        "pool_bytes": geometry.pool_bytes,
        "page_size": geometry.page_size,
        "large_page_bytes": large_bytes,
        "num_large_pages": books.num_large,
        "free_large_pages": books.num_free,
        "free_bytes": books.num_free * large_bytes,
        "unusable_bytes": geometry.pool_bytes - books.num_large * large_bytes,
        "running_requests": len(manager.running),
        "max_length": manager.max_length,
        "refused_reservations": counters.refused_reservations,
        "saved_snapshots": counters.saved_snapshots,
        "skipped_snapshots": counters.skipped_snapshots,
        "prompt_tokens": counters.prompt_tokens,
        "hit_tokens": counters.hit_tokens,
        "awaited_tokens": counters.awaited_tokens,
        "step_cost_tokens": manager.prices.step_cost_tokens,
        "measured_step_tokens": manager.prices.measured_step_tokens(),
        "kept_out_passes": counters.kept_out_passes,
        "longest_kept_out_passes": counters.longest_kept_out_passes,
        "predicted_tokens": counters.predicted_tokens,
        "missed_tokens": counters.missed_tokens,
        "stopped_predicting": counters.stopped_predicting,
        "groups": [group_stats(manager, g) for g in range(len(geometry.groups))],
    }


def group_stats(manager: Manager, group: int) -> dict[str, Any]:
    """One group's geometry, bytes and counters."""
    cut = manager.geometry.groups[group]
    books, counters = manager.memory.large, manager.counters
    used, held = books.num_used[group], books.num_held[group]
    return {
        "name": cut.spec.name,
        "layers": len(cut.spec.layers),
        "dependency": str(manager.dependencies[group]),
        "bytes_per_token": cut.spec.bytes_per_token,
        "state_bytes": len(cut.spec.layers) * cut.spec.layer_state_bytes,
        "stripes": cut.stripes,
        "small_page_bytes": cut.small_page_bytes,
        "small_pages_per_large_page": manager.geometry.small_per_large(group),
        "max_pages": manager.geometry.max_pages(group),
        "large_pages": books.num_owned[group],
        "used_bytes": used * cut.small_page_bytes,
        "cached_bytes": (held - used) * cut.small_page_bytes,
        "free_bytes": books.num_holes(group) * cut.small_page_bytes,
        "waste_bytes": _waste_bytes(manager, group),
        "draft_bytes": _unwritten_bytes(manager, group) if manager.tail_tokens else 0,
        "lost_hit_tokens": counters.lost_hit_tokens[group],
        "evicted_pages": counters.evicted[group],
        "cascaded_pages": counters.cascaded[group],
    }


def _waste_bytes(manager: Manager, group: int) -> int:
    padding_bytes = manager.geometry.groups[group].padding_bytes
    padding_bytes *= manager.memory.large.num_held[group]
    return padding_bytes + (0 if manager.tail_tokens else _unwritten_bytes(manager, group))


def _unwritten_bytes(manager: Manager, group: int) -> int:
    """Of pages behind what requests have for good: what is left of their last, or their tails."""
    unwritten = sum(
        running.num_pages * manager.page_size - running.length
        for running in manager.running.values()
        if running.num_pages and running.holds_last_page(group)
    )
    return unwritten * manager.geometry.groups[group].spec.bytes_per_token


def used_share(manager: Manager) -> float:
    """Share of the pool's bytes that running requests pin, 0 to 1: what is neither free nor could
    be evicted."""
    books, geometry = manager.memory.large, manager.geometry
    used = sum(
        n * cut.small_page_bytes for n, cut in zip(books.num_used, geometry.groups, strict=True)
    )
    return used / (books.num_large * geometry.large_page_bytes)


def describe_room(manager: Manager) -> str:
    """One line: free large pages, and used, cached and free small pages of each group."""
    books = manager.memory.large
    parts = [f"{books.num_free} of {books.num_large} large pages free"]
    for g, group in enumerate(manager.geometry.groups):
        used, held = books.num_used[g], books.num_held[g]
        parts.append(
            f"{group.spec.name}: {books.num_owned[g]} large pages, small pages {used} used "
            f"{held - used} cached {books.num_holes(g)} free"
        )
    return "; ".join(parts)


def large_page_map(books: LargePages) -> bytes:
    """Two bytes per large page, in order of address, the reserved one left out.

    The first is 0 for a free page, else 1 + the group that owns it. The second has the share of
    used bytes in its high and of cached bytes in its low four bits, in fifteenths; what there is
    of either shows as at least one.
    """
    owner = books.owner[1:].astype(np.int32)
    per_large = np.array([*books.small_per_large, 1], np.int32)[owner]  # -1: free
    used, held = books.used[1:], books.held[1:]
    levels = [_level(used, per_large), _level(held - used, per_large)]
    cells = np.empty((books.num_large, 2), np.uint8)
    cells[:, 0] = owner + 1
    cells[:, 1] = np.where(owner < 0, 0, levels[0] << 4 | levels[1])
    return cells.tobytes()


def _level(count: Any, per_large: Any) -> Any:
    return np.where(count > 0, np.maximum(1, MAP_LEVELS * count // per_large), 0)
