"""The one place where tests look inside a manager: its arrays and tree, read into plain sets."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from jenga_sglang.core.manager import Manager
from jenga_sglang.core.pin import Pin


class Histories:
    """Numbers for histories of whole pages: equal tokens from the start, equal number.

    A page of tokens *is* the history that it ends. ``parent[n]`` is the history one page shorter;
    0 is none.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.parent = [0]
        self.depth = [-1]
        self.namespace: list[Hashable] = [None]
        self._numbers: dict[tuple[Hashable, int, bytes], int] = {}

    def pages(self, namespace: Hashable, tokens: np.ndarray) -> list[int]:
        """The history that each whole page of ``tokens`` ends."""
        numbers: list[int] = []
        for start in range(0, len(tokens) - self.page_size + 1, self.page_size):
            page = tokens[start : start + self.page_size].tobytes()
            numbers.append(self._number(namespace, numbers[-1] if numbers else 0, page))
        return numbers

    def _number(self, namespace: Hashable, parent: int, page: bytes) -> int:
        key = (namespace, parent, page)
        if key not in self._numbers:
            self._numbers[key] = len(self.parent)
            self.parent.append(parent)
            self.depth.append(self.depth[parent] + 1)
            self.namespace.append(namespace)
        return self._numbers[key]


@dataclass
class Snapshot:
    """What a manager holds: histories instead of virtual pages, and every small page's place."""

    virtual: dict[int, int] = field(default_factory=dict)  # of each history in the tree
    cached: list[set[int]] = field(default_factory=list)  # histories that each group holds
    pins: list[dict[int, int]] = field(default_factory=list)  # pins of those, where not 0
    used_small: list[set[int]] = field(default_factory=list)
    idle_small: list[set[int]] = field(default_factory=list)


def snapshot(manager: Manager, histories: Histories) -> Snapshot:
    """Read the tree and the page tables, and nothing that is only counted."""
    memory = manager.memory
    seen = Snapshot(virtual=_virtual_pages(manager, histories))
    for group, table in enumerate(memory.table):
        held = {h: v for h, v in seen.virtual.items() if table[v, 0]}
        seen.cached.append(set(held))
        pins = {h: int(memory.pins[group][v]) for h, v in held.items()}
        seen.pins.append({h: n for h, n in pins.items() if n})
        rows = np.flatnonzero(table[:, 0])
        used = rows[memory.pins[group][rows] > 0]
        idle = rows[memory.pins[group][rows] == 0]
        seen.used_small.append(set(table[used].ravel().tolist()))
        seen.idle_small.append(set(table[idle].ravel().tolist()))
    return seen


def _virtual_pages(manager: Manager, histories: Histories) -> dict[int, int]:
    found: dict[int, int] = {}
    for namespace, root in manager.tree._roots.items():
        stack = [(root, np.empty(0, np.int64))]
        while stack:
            node, before = stack.pop()
            tokens = np.concatenate((before, node.tokens))
            numbers = histories.pages(namespace, tokens)[node.start :]
            held = zip(numbers, node.pages.tolist(), strict=True)
            found.update({number: page for number, page in held if page})
            stack += [(child, tokens) for child in node.children.values()]
    return found


@dataclass(frozen=True)
class Place:
    """A large page that ``group`` owns, and the histories in the tree that lie in it.

    ``has_others``: pages that are not in the tree, or states; ``is_idle``: nothing is used."""

    group: int
    large: int
    tenants: frozenset[int]
    has_others: bool
    is_idle: bool
    time: int

    @property
    def key(self) -> tuple[int, int]:
        return self.group, self.large


def places(manager: Manager, seen: Snapshot) -> list[Place]:
    """Every large page in use, by the page tables alone, with its time in the eviction order."""
    memory, found = manager.memory, []
    for group, table in enumerate(memory.table):
        per_large = manager.geometry.small_per_large(group)
        tenants: dict[int, set[int]] = {}
        for history in seen.cached[group]:
            for small in table[seen.virtual[history]].tolist():
                tenants.setdefault(small // per_large, set()).add(history)
        used = {small // per_large for small in seen.used_small[group]}
        of_tree = {s for h in seen.cached[group] for s in table[seen.virtual[h]].tolist()}
        others = {small // per_large for small in seen.used_small[group] - of_tree}
        for large in sorted({*tenants, *others}):
            here = frozenset(tenants.get(large, ()))
            time = int(memory.lru.time[large])
            found.append(Place(group, large, here, large in others, large not in used, time))
    return found


def row_holds(manager: Manager, pin: Pin, group: int) -> set[int]:
    """Places in a request's row for which ``group`` has a small page."""
    return set(np.flatnonzero(manager.memory.table[group][pin.row, 0]).tolist())


def digest(manager: Manager) -> list[object]:
    """Everything that a decision could depend on, comparable with ``==``; see `contents`."""
    memory = manager.memory
    pins = [(p.number, p.row.tolist(), p.tree_pages, p.held) for p in manager.pins.values()]
    queue = {
        time: [part.tolist() for part in [*bucket.fresh, *bucket.runs]]
        for time, bucket in memory.lru._buckets.items()
    }
    return [contents(manager), memory.pins.tolist(), memory.large.used.tolist(), repr(pins), queue]


def contents(manager: Manager) -> list[object]:
    """What is where, in pages and in the tree, and since when; not who pins it."""
    memory = manager.memory
    large = memory.large
    arrays = [*memory.table, memory.in_tree, memory.depth, memory.lru.time, large.owner, large.held]
    arrays += [memory._free[: memory.num_free_virtual], large._free[: large.num_free]]
    nodes = [(n.number, n.start, n.tokens.tolist(), n.pages.tolist()) for n in manager.tree]
    holes = [{page: list(small) for page, small in of.items()} for of in large._holes]
    return [[a.tolist() for a in arrays], nodes, holes, memory.now]
