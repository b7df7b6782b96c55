"""Small pools and managers for tests of the core."""

from collections.abc import Sequence

import core_inspector as inside
import numpy as np

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import WritePolicy

UNIT_BYTES = 8  # one token in one layer


def make_geometry(
    dependencies: Sequence[Dependency],
    num_large_pages: int,
    *,
    page_size: int = 1,
    layers: Sequence[int] | None = None,
    stripes: Sequence[int] | None = None,
) -> Geometry:
    """A pool of ``num_large_pages`` beside the reserved one; one layer and stripe by default."""
    layers = layers or [1] * len(dependencies)
    stripes = stripes or [1] * len(dependencies)
    groups = []
    first = 0
    for g, (dependency, count) in enumerate(zip(dependencies, layers, strict=True)):
        ids = tuple(range(first, first + count))
        spec = LayerGroupSpec(f"group{g}", ids, dependency, UNIT_BYTES // 2, UNIT_BYTES // 2)
        groups.append(GroupGeometry(spec, page_size, stripes[g]))
        first += count
    ample = Geometry(tuple(groups), page_size, 1 << 40)
    return ample.resized(ample.large_page_bytes * (num_large_pages + 1))


def make_manager(
    *dependencies: Dependency,
    num_large: int,
    page_size: int = 1,
    layers: Sequence[int] | None = None,
    stripes: Sequence[int] | None = None,
    max_requests: int = 8,
    max_length: int = 1000,
) -> Manager:
    """A manager of a pool with one group per dependency."""
    geometry = make_geometry(
        dependencies, num_large, page_size=page_size, layers=layers, stripes=stripes
    )
    return Manager(geometry, max_requests=max_requests, max_length=max_length)


def make_tiered(
    *dependencies: Dependency,
    num_large: int,
    num_host: int,
    page_size: int = 1,
    write_policy: WritePolicy = WritePolicy.BACK,
    max_requests: int = 8,
) -> TieredManager:
    """The same over ``num_host`` large pages of host memory."""
    geometry = make_geometry(dependencies, num_large, page_size=page_size)
    return TieredManager(
        geometry,
        host_bytes=(num_host + 1) * geometry.large_page_bytes,
        write_policy=write_policy,
        max_requests=max_requests,
        max_length=1000,
    )


def evict_all(manager: Manager) -> None:
    """Evict all that nobody pins from the device."""
    while inside.evict_large(manager, 100):
        pass


def tokens(*parts: int | range | Tokens) -> Tokens:
    """Token ids: ``tokens(range(3), 9)`` is 0, 1, 2, 9."""
    return np.concatenate([np.atleast_1d(np.array(part, np.int64)) for part in parts])


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


def begin(
    manager: Manager, history: Tokens, *, namespace: str | None = None, publish: bool = False
) -> Running:
    """Lock the longest hit of a new request and give it pages for all of ``history``. With
    ``publish`` its windows wait for `Manager.publish` before they slide.

    The last token is never matched: its output is what the request wants.
    """
    running = manager.lock(manager.match(namespace, history[:-1]))
    grow(manager, running, len(history), publish=publish)
    return running


def grow(manager: Manager, running: Running, length: int, *, publish: bool = False) -> None:
    """Reserve and take pages for ``length`` tokens; the pool must have room."""
    assert manager.reserve([(running, manager.new_pages(running, length))])
    manager.extend(running, length, publish=publish)


def serve(manager: Manager, history: Tokens, *, namespace: str | None = None) -> None:
    """Compute ``history`` in one step, leave it in the tree, and end."""
    running = begin(manager, history, namespace=namespace)
    manager.publish(running, namespace, history)
    manager.release(running)


def hit_tokens(manager: Manager, history: Tokens, *, namespace: str | None = None) -> int:
    """Length of the longest hit of ``history``; nothing is written."""
    return manager.match(namespace, history).path.num_pages * manager.page_size


def held_pages(manager: Manager, group: int, history: Tokens) -> list[int]:
    """Pages of ``history`` that the tree holds for ``group``, by their place in the history."""
    path = inside.find(manager, None, history)
    pages = inside.path_pages(manager, path)
    return np.flatnonzero(inside.tables(manager)[group][pages, 0]).tolist()
