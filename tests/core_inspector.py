"""The one place where tests look inside a manager: its arrays and tree, read into plain sets."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.journal import TreeChange
from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.books.tree import Node, Path, Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.needs import Needs
from jenga_sglang.core.running import Running
from jenga_sglang.core.tiered_manager import TieredManager


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


def row_holds(manager: Manager, running: Running, group: int) -> set[int]:
    """Places in a request's row for which ``group`` has a small page."""
    return set(np.flatnonzero(manager.memory.table[group][running.row, 0]).tolist())


def digest(manager: Manager) -> list[object]:
    """Everything that a decision could depend on, comparable with ``==``; see `contents`."""
    memory = manager.memory
    running = [(p.number, p.row.tolist(), p.tree_pages, p.held) for p in manager.running.values()]
    queue = {
        time: [part.tolist() for part in [*bucket.fresh, *bucket.runs]]
        for time, bucket in memory.lru._buckets.items()
    }
    return [
        contents(manager),
        memory.pins.tolist(),
        memory.large.used.tolist(),
        repr(running),
        queue,
    ]


def contents(manager: Manager) -> list[object]:
    """What is where, in pages and in the tree, and since when; not who pins it."""
    memory = manager.memory
    large = memory.large
    arrays = [*memory.table, memory.in_tree, memory.depth, memory.lru.time, large.owner, large.held]
    arrays += [memory._free[: memory.num_free_virtual], large._free[: large.num_free]]
    nodes = [(n.number, n.start, n.tokens.tolist(), n.pages.tolist()) for n in manager.tree]
    holes = [{page: list(small) for page, small in of.in_large.items()} for of in large.holes]
    return [[a.tolist() for a in arrays], nodes, holes, memory.now]


# -- two tiers -----------------------------------------------------------------------------------


def host(manager: TieredManager) -> Memory:
    """The host's books."""
    return manager.memory.host


def leave_in_host(manager: TieredManager, group: int, pages: Ids) -> None:
    """Corrupt the books: the host caches private pages."""
    books = host(manager)
    books.back(group, pages, 0)
    books.pins[group][pages] = 0
    books.lru.add(books.large.cache(group, books.small_pages(group, pages)))


def evict_from_host(manager: TieredManager, group: int, pages: Ids) -> None:
    """Have the host lose these pages of ``group``, and what falls with them."""
    manager.tiers.evictor.evict_pages(group, pages)


def evict_large_from_host(manager: TieredManager, count: int) -> bool:
    """Evict ``count`` large pages of the host whose turn it is; whether there were any."""
    return manager.tiers.evictor.evict_large(count)


def host_times(manager: TieredManager) -> Ids:
    """The logical time of the last use of each large page of the host."""
    return host(manager).lru.time


def host_tables(manager: TieredManager) -> list[Ids]:
    """As `tables`, of the host."""
    return manager.memory.host.table


def host_held(manager: TieredManager) -> list[set[int]]:
    """Small pages of each group that the host's tables name."""
    return [set(table.ravel().tolist()) - {0} for table in host_tables(manager)]


def host_owner(manager: TieredManager) -> list[int]:
    """The group that owns each large page of the host, negative where none does."""
    owners: list[int] = manager.memory.host.large.owner.tolist()
    return owners


def host_virtual(manager: TieredManager, group: int, small: Ids) -> set[int]:
    """The virtual pages that small pages of the host belong to; 0 for one that is free."""
    return set(manager.memory.host.virtual_of[group][small].tolist())


def host_histories(manager: TieredManager, histories: Histories) -> list[set[int]]:
    """The histories of which each group has the last page in the host."""
    virtual = _virtual_pages(manager, histories)
    return [{h for h, v in virtual.items() if table[v, 0]} for table in host_tables(manager)]


def held_places(manager: TieredManager, pages: Ids) -> tuple[list[set[int]], list[set[int]]]:
    """Which of ``pages``, by place, each group holds on the device, and in the host."""
    device, host = (
        [set(np.flatnonzero((pages != 0) & (table[pages, 0] != 0)).tolist()) for table in tables_of]
        for tables_of in (tables(manager), host_tables(manager))
    )
    return device, host


def free_ids(manager: Manager) -> Ids:
    """Virtual pages that name nothing."""
    return manager.memory.free_virtual


def histories(manager: Manager) -> list[tuple[Hashable, list[int], Node]]:
    """Every node of the tree with its namespace and all tokens up to its end."""
    found = []
    for namespace, root in roots(manager).items():
        stack: list[tuple[Node, list[int]]] = [(root, [])]
        while stack:
            node, before = stack.pop()
            tokens = before + node.tokens.tolist()
            found.append((namespace, tokens, node))
            stack += [(child, tokens) for child in node.children.values()]
    return found


# -- one fact each -------------------------------------------------------------------------------


def num_large(manager: Manager) -> int:
    return manager.memory.large.num_large


def num_free(manager: Manager) -> int:
    """Large pages that no group owns."""
    return manager.memory.large.num_free


def num_owned(manager: Manager) -> list[int]:
    """Large pages of each group."""
    return manager.memory.large.num_owned


def num_used(manager: Manager) -> list[int]:
    """Small pages of each group that running requests pin."""
    return manager.memory.large.num_used


def num_held(manager: Manager) -> list[int]:
    """Small pages of each group, used or cached."""
    return manager.memory.large.num_held


def small_per_large(manager: Manager) -> list[int]:
    return manager.memory.large.small_per_large


def num_ids(manager: Manager) -> int:
    """Virtual pages that there are."""
    return manager.memory.num_virtual


def num_free_ids(manager: Manager) -> int:
    return manager.memory.num_free_virtual


def num_in_tree(manager: Manager) -> int:
    """Virtual pages in the tree."""
    return manager.memory.num_tree


def tables(manager: Manager) -> list[Ids]:
    """The page table of each group: (virtual pages, stripes) small pages, 0 where there is none."""
    return manager.memory.table


def pin_counts(manager: Manager) -> NDArray[np.int32]:
    """(groups + 1, virtual pages): pins in each group, and of the virtual pages themselves."""
    return manager.memory.pins


def times(manager: Manager) -> Ids:
    """The logical time of the last use of each large page."""
    return manager.memory.lru.time


def now(manager: Manager) -> int:
    return manager.memory.now


def tick(manager: Manager) -> int:
    """Let logical time go on."""
    return manager.memory.tick()


def row_groups(manager: Manager) -> list[int]:
    return manager.memory.row_groups


def state_groups(manager: Manager) -> list[int]:
    return manager.memory.state_groups


def stripes(manager: Manager) -> list[int]:
    return manager.memory.stripes


def record_tree(manager: Manager) -> None:
    manager.memory.journal.record_tree()


def tree_changes(manager: Manager) -> list[TreeChange]:
    """What the tree's pages have gained and lost since the last call."""
    return manager.memory.journal.take_tree_changes()


def find(manager: Manager, namespace: Hashable, tokens: Tokens) -> Path:
    """The longest history in the tree that ``tokens`` begins with."""
    return manager.tree.find(namespace, tokens)


def path_pages(manager: Manager, path: Path) -> Ids:
    """The virtual pages of ``path``."""
    return manager.tree.pages(path)


def pages_of(manager: Manager, tokens: Tokens, namespace: Hashable = None) -> Ids:
    """The virtual pages of what the tree knows of ``tokens``."""
    return path_pages(manager, find(manager, namespace, tokens))


def roots(manager: Manager) -> dict[Hashable, Node]:
    """The empty history of every namespace."""
    return manager.tree._roots


def memory(manager: Manager) -> Memory:
    """The books that begin anew with every reset."""
    return manager.memory


def needs(manager: Manager) -> Needs:
    """What the groups need of histories."""
    return manager.needs


def idle_large(manager: Manager) -> Ids:
    """Large pages that hold cached pages and nothing else."""
    return manager.memory.large.reclaimable()


def owned_large(manager: Manager, group: int) -> Ids:
    return np.flatnonzero(manager.memory.large.owner == group)


def nodes(manager: Manager) -> list[Node]:
    return list(manager.tree)


def nodes_of(manager: Manager, pages: Ids) -> list[Node]:
    """The nodes in which tree ``pages`` lie, each once."""
    return manager.tree.nodes_of(pages)


def evict_pages(manager: Manager, group: int, pages: Ids) -> None:
    """Evict these pages of ``group``, whoever's turn it is, and what falls with them."""
    manager.evictor.evict_pages(group, pages)


def evict_large(manager: Manager, count: int) -> bool:
    """Evict ``count`` large pages whose turn it is; whether there were any."""
    return manager.evictor.evict_large(count)


def lose_a_large_page(manager: Manager) -> None:
    """Corrupt the books: a free large page is nowhere."""
    manager.memory.large.num_free -= 1
