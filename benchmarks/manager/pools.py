"""Managers of any size, full of cached prefixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.replay.geometry import Group, load_geometry
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.cut.geometry import Geometry, LayerGroupSpec
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.dependency import Dependency, Full, SlidingWindow
from jenga_sglang.core.manager import Manager

DATA = Path(__file__).parents[1] / "replay" / "data"
GEOMETRIES = {
    "gemma": "gemma3-27b.json",
    "gpt-oss": "gpt-oss-120b.json",
    "llama": "llama3-8b.json",
}
PAGE_TOKENS = 16
# The budget that the cut is planned for; the pool then gets more or fewer of these large pages.
PLANNED_BYTES = 40 << 30
MAX_LENGTH_TOKENS = 131_072
MAX_REQUESTS = 2_048
# Histories share their first half in fours, as questions on one document do.
SHARING = 4


def make_manager(name: str, large_pages: int) -> Manager:
    """An empty pool of so many large pages, cut as the real model's would be."""
    return Manager(
        planned_cut(name).resized((large_pages + 1) * planned_cut(name).large_page_bytes),
        max_requests=MAX_REQUESTS,
        max_length=MAX_LENGTH_TOKENS,
    )


def planned_cut(name: str) -> Geometry:
    """The cut of one of `GEOMETRIES`, for `PLANNED_BYTES`."""
    model = load_geometry(DATA / GEOMETRIES[name])
    specs = [
        _spec(group, tuple(layer for layer, of in enumerate(model.order) if of == index))
        for index, group in enumerate(model.groups)
    ]
    return plan_geometry(
        specs, pool_bytes=PLANNED_BYTES, max_length=MAX_LENGTH_TOKENS, page_size=PAGE_TOKENS
    ).geometry


def _spec(group: Group, layers: tuple[int, ...]) -> LayerGroupSpec:
    dependency: Dependency = Full() if group.window is None else SlidingWindow(group.window)
    half = group.row_bytes // 2
    return LayerGroupSpec(group.kind, layers, dependency, k_bytes=half, v_bytes=half)


def history(number: int, length: int) -> Tokens:
    """The tokens of prefix ``number``, int64: a half that `SHARING` of them have, and its own."""
    half = length // 2 // PAGE_TOKENS * PAGE_TOKENS
    shared = -1 - (number // SHARING)
    first = np.arange(half, dtype=np.int64) + shared * (1 << 32)
    return np.concatenate((first, fresh_tokens(number, length - half)))


def fresh_tokens(number: int, length: int) -> Tokens:
    """Tokens, int64, that no other ``number`` has."""
    return np.arange(length, dtype=np.int64) + (number + 1) * (1 << 32)


def serve(manager: Manager, tokens: Tokens) -> None:
    """One request from hit to release: its prompt stays cached."""
    running = manager.lock(manager.match(None, tokens[:-1]))
    if not manager.reserve([(running, manager.new_pages(running, len(tokens)))]):
        raise MemoryError(f"a pool of {manager.memory.large.num_large} large pages is too small")
    manager.extend(running, len(tokens))
    manager.publish(running, None, tokens)
    manager.release(running)


def fill(
    manager: Manager,
    length: int,
    first: int,
    stop: int | None,
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Cache the histories of ``length`` tokens from number ``first`` up to ``stop``, or until
    pages are evicted for the next; returns where it stopped."""
    number = first
    while number != stop:
        serve(manager, history(number, length))
        number += 1
        if stop is None and any(manager.counters.evicted.values()):
            break
        if number % 256 == 0:
            progress()
    return number
