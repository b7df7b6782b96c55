"""The points that are measured: pools of many sizes, trees of many sizes, batches of many sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from rich.progress import Progress

from benchmarks.manager.operations import (
    DECODED_PAGES,
    PREFIX_TOKENS,
    PROMPT_TOKENS,
    WAITING_PREFIXES,
    WAITING_REQUESTS,
    Rounds,
)
from benchmarks.manager.pools import PAGE_TOKENS, fill, make_manager
from benchmarks.manager.timing import no_collection
from jenga_sglang.core.manager import Manager

WARM_UP_ROUNDS = 2
LEAST_ROUNDS = 10
# A small pool does not hold a batch beside what it caches.
SMALL_POOL_PAGES = 10_000


@dataclass(frozen=True)
class Sizes:
    """What is swept. ``pools`` are in large pages, ``trees`` in cached prefixes; the largest
    pool has the trees, and ``batch_pool`` the batches."""

    geometries: Sequence[str]
    pools: Sequence[int]
    trees: Sequence[int]
    batches: Sequence[int]
    batch: int
    batch_pool: int
    rounds: int
    seconds: float


def measure(sizes: Sizes) -> dict[str, Any]:
    """Measure every point; returns what was run and a row per point, ready for JSON."""
    points: list[dict[str, Any]] = []
    with Progress(transient=True) as progress:
        for geometry in sizes.geometries:
            for pool in sorted(sizes.pools):
                points += _points_of_pool(sizes, geometry, pool, progress)
    return {
        "sizes": asdict(sizes),
        "page_tokens": PAGE_TOKENS,
        "prefix_tokens": PREFIX_TOKENS,
        "prompt_tokens": PROMPT_TOKENS,
        "decoded_pages": DECODED_PAGES,
        "waiting_requests": WAITING_REQUESTS,
        "waiting_prefixes": WAITING_PREFIXES,
        "numpy": version("numpy"),
        "points": points,
    }


def _points_of_pool(
    sizes: Sizes, geometry: str, pool: int, progress: Progress
) -> list[dict[str, Any]]:
    """Everything that is measured on one pool, while it fills up and when it is full."""
    manager = make_manager(geometry, pool)
    name = f"{geometry}, {pool:,} large pages"
    points = []
    prefixes = 0
    if pool == max(sizes.pools):
        for tree in sorted(sizes.trees):
            prefixes = _fill(manager, prefixes, tree, name, progress)
            points.append(_point("tree", sizes, geometry, manager, prefixes, sizes.batch, progress))
    prefixes = _fill(manager, prefixes, None, name, progress)
    batch = sizes.batch if pool >= SMALL_POOL_PAGES else 1
    points.append(_point("pool", sizes, geometry, manager, prefixes, batch, progress))
    if pool == sizes.batch_pool:
        points += [
            _point("batch", sizes, geometry, manager, prefixes, batch, progress)
            for batch in sizes.batches
        ]
    manager.check_idle()
    return points


def _fill(
    manager: Manager, prefixes: int, wanted: int | None, name: str, progress: Progress
) -> int:
    large = manager.memory.large
    task = progress.add_task(f"filling {name}", total=large.num_large)
    try:
        return fill(
            manager,
            PREFIX_TOKENS,
            prefixes,
            wanted,
            lambda: progress.update(task, completed=large.num_large - large.num_free),
        )
    finally:
        progress.remove_task(task)


def _point(
    sweep: str,
    sizes: Sizes,
    geometry: str,
    manager: Manager,
    prefixes: int,
    batch: int,
    progress: Progress,
) -> dict[str, Any]:
    rounds = Rounds(manager, prefixes, batch)
    task = progress.add_task(f"{geometry}, {sweep}, {batch} requests", total=sizes.rounds)
    with no_collection():
        for _ in range(WARM_UP_ROUNDS):
            rounds.run()
        rounds.samples.clear()
        begin = time.monotonic()
        for done in range(sizes.rounds):
            if done >= LEAST_ROUNDS and time.monotonic() - begin > sizes.seconds:
                break
            rounds.run()
            progress.advance(task)
    progress.remove_task(task)
    return {
        "sweep": sweep,
        "geometry": geometry,
        "large_pages": manager.memory.large.num_large,
        "cached_prefixes": prefixes,
        "batch": batch,
        "operations": rounds.samples.summary(),
    }
