"""The prefix tree: which token histories have pages, and which pages those are.

A page-granular radix tree. A node carries a run of whole pages: their token ids and their virtual
pages. What each group still holds of them is for `core.books.memory` to say; a virtual page that no
group holds anything of becomes 0 in its node. Histories of different namespaces never meet.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.corrupt import agree, distinct, none, present
from jenga_sglang.core.ids import Ids, ceil_div, each_once

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The namespace ``name`` for histories whose first ``tokens`` tokens, whole pages, were made by
    an encoder. Histories with parts of another length are none of theirs."""

    name: Hashable
    tokens: int


@dataclass(eq=False)
class Node:
    """A run of pages below ``parent``; its first page is page ``start`` of the history, of which
    an encoder made the first ``encoder_pages`` pages. ``version`` is the tree's when the run, the
    children or what a group holds of the pages last changed, or the node left the tree;
    ``pages_version`` the same but for children and for a run that was split."""

    key: bytes
    parent: Node | None
    start: int
    tokens: Tokens
    pages: Ids
    number: int
    encoder_pages: int
    version: int
    pages_version: int
    name: Hashable = None  # of a root: its namespace
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + len(self.pages)


# Namespaces without a history that are kept at least; a client may name a new one every time.
FEWEST_ROOTS = 256


@dataclass(frozen=True)
class Path:
    """The first ``num_pages`` pages of a history, ending inside or at the end of ``node``."""

    node: Node
    num_pages: int


class PrefixTree:
    """Match, insert and shorten. ``find`` never writes; ``insert`` may split a node.

    What was worked out of the pages of a path at ``version`` holds while none of them
    `has_changed` since.
    """

    def __init__(self, page_size: int, num_virtual: int) -> None:
        self.page_size = page_size
        self._roots: dict[Hashable, Node] = {}
        self._most_roots = FEWEST_ROOTS
        self._next_number = 0
        self.version = 0
        # The node that holds a tree page, by its number.
        self._node_of = np.zeros(num_virtual + 1, np.int64)
        self._nodes: dict[int, Node] = {}

    def change(self, nodes: Iterable[Node]) -> None:
        """Note that ``nodes`` are not what they were."""
        self.version += 1
        for node in nodes:
            node.version = node.pages_version = self.version

    def _branch(self, node: Node) -> None:
        """Note that ``node`` ends elsewhere or has another child, with the pages that it had."""
        self.version += 1
        node.version = self.version

    def has_changed(self, path: Path, version: int) -> bool:
        """Whether the pages of ``path`` or what a group holds of them changed after ``version``."""
        node: Node | None = path.node
        while node is not None:
            if node.pages_version > version:
                return True
            node = node.parent
        return False

    def root(self, namespace: Hashable) -> Node:
        """The empty history of ``namespace``."""
        if namespace not in self._roots:
            root = self._new_node(b"", None, 0, np.empty(0, np.int64), np.empty(0, np.int64))
            if isinstance(namespace, Encoded):
                root.encoder_pages = ceil_div(namespace.tokens, self.page_size)
            root.name = namespace
            self._roots[namespace] = root
        return self._roots[namespace]

    def find(self, namespace: Hashable, tokens: Tokens, known: Path | None = None) -> Path:
        """The longest history in the tree that ``tokens`` begins with, in whole pages.

        ``known`` is what it was at some time. What a living node's history is, its parents' and its
        own, never changes but at the end: so only what follows ``known`` is compared.
        """
        total = len(tokens) // self.page_size
        node, pages = self.root(namespace), 0
        if known is not None and self.is_alive(known.node):
            node, pages = known.node, min(known.num_pages, known.node.stop, total)
            while pages <= node.start and node.parent is not None:
                node = node.parent
        while True:
            pages += self._common_pages(node, tokens, pages)
            if pages < node.stop or pages >= total:
                return Path(node, pages)
            child = node.children.get(self.key(tokens, pages))
            if child is None:
                return Path(node, pages)
            node = child

    def namespace(self, node: Node) -> Hashable:
        """Whose history ``node`` is part of."""
        while node.parent is not None:
            node = node.parent
        return node.name

    def history(self, node: Node) -> Tokens:
        """All tokens up to the end of ``node``."""
        parts = [node.tokens, *(parent.tokens for parent in _ancestors(node) if parent is not node)]
        return np.concatenate(parts[::-1])

    def goes_on(self, path: Path) -> bool:
        """Whether the tree knows a history that ``path`` is only the beginning of."""
        return path.num_pages < path.node.stop or bool(path.node.children)

    def pages(self, path: Path) -> Ids:
        """Virtual pages of ``path`` from the root; 0 where a page is hollow."""
        parts, node, stop = [], path.node, path.num_pages
        while node.parent is not None:
            if stop > node.start:
                parts.append(node.pages[: stop - node.start])
            node = node.parent
        return np.concatenate(parts[::-1]) if parts else np.empty(0, np.int64)

    def extend(self, path: Path, tokens: Tokens, pages: Ids) -> Path:
        """Append ``pages`` (virtual pages of the rest of ``tokens``) below ``path``.

        ``path`` must be what `find` gives for ``tokens``. Splits its node if it ends inside.
        """
        node, start = path.node, path.num_pages
        if node.start < start < node.stop:
            node = self._split(node, start - node.start)
        if not len(pages):
            return Path(node, start)
        stop = start + len(pages)
        own = tokens[start * self.page_size : stop * self.page_size].copy()
        key = self.key(tokens, start)
        child = self._new_node(key, node, start, own, pages.copy())
        node.children[key] = child
        self._branch(node)
        return Path(child, stop)

    def replace(self, path: Path, first: int, pages: Ids) -> None:
        """Fill hollow pages of ``path`` from page ``first`` on; 0 leaves a page as it is."""
        for node in _ancestors(path.node):
            lo, hi = max(first, node.start), min(first + len(pages), node.stop)
            if lo >= hi:
                continue
            new = pages[lo - first : hi - first]
            filled = new != 0
            node.pages[lo - node.start : hi - node.start][filled] = new[filled]
            self._node_of[new[filled]] = node.number
            self.change([node])

    def nodes_of(self, virtual: Ids) -> list[Node]:
        """The nodes that hold these tree pages, each once, in a fixed order."""
        return [self._nodes[n] for n in each_once(self._node_of[virtual]).tolist()]

    def is_in(self, node: Node, virtual: Ids) -> NDArray[np.bool_]:
        """Which tree pages ``node`` holds."""
        held: NDArray[np.bool_] = self._node_of[virtual] == node.number
        return held

    def below(self, node: Node, index: int) -> Ids:
        """All virtual pages of ``node`` from ``index`` on and of everything below it."""
        parts = [node.pages[index:]]
        parts += [n.pages for child in node.children.values() for n in _descendants(child)]
        pages = np.concatenate(parts)
        return pages[pages != 0]

    def cut(self, node: Node, index: int) -> None:
        """Forget ``node`` from page ``index`` on and everything below it."""
        for child in node.children.values():
            for gone in _descendants(child):
                del self._nodes[gone.number]
                self.change([gone])
        self.change([node])
        node.children = {}
        node.tokens = node.tokens[: index * self.page_size]
        node.pages = node.pages[:index]
        self.trim(node)

    def is_alive(self, node: Node) -> bool:
        """Whether ``node`` is still in the tree."""
        return self._nodes.get(node.number) is node

    def hollow_out(self, virtual: Ids) -> None:
        """Mark tree pages as held by nobody, and forget the ends of histories that are hollow."""
        nodes = self.nodes_of(virtual)
        self._node_of[virtual] = 0
        for node in nodes:
            node.pages[self._node_of[node.pages] == 0] = 0
            self.change([node])
            self.trim(node)

    def trim(self, node: Node) -> None:
        """Forget the hollow end of ``node`` when nothing hangs below it."""
        while node.parent is not None and not node.children:
            held = np.flatnonzero(node.pages)
            num_pages = int(held[-1]) + 1 if len(held) else 0
            node.tokens = node.tokens[: num_pages * self.page_size]
            node.pages = node.pages[:num_pages]
            if num_pages:
                return
            parent = node.parent
            self._prune(node)
            node = parent

    def _prune(self, node: Node) -> None:
        if not len(node.pages) and not node.children and node.parent is not None:
            del node.parent.children[node.key]
            del self._nodes[node.number]
            self.change([node])
            self._branch(node.parent)

    def _split(self, node: Node, index: int) -> Node:
        """Cut ``node`` before page ``index``; the upper half is new and is returned.

        The lower half stays the same object, so a `Path` that ends in it keeps its meaning.
        """
        parent, size = present(node.parent, "a root was split"), self.page_size
        upper = self._new_node(
            node.key, parent, node.start, node.tokens[: index * size], node.pages[:index]
        )
        parent.children[node.key] = upper
        node.key = self.key(node.tokens, index)
        node.parent = upper
        node.start += index
        node.tokens = node.tokens[index * size :]
        node.pages = node.pages[index:]
        upper.children[node.key] = node
        upper.pages_version = node.pages_version
        self._branch(node)
        return upper

    def _new_node(
        self, key: bytes, parent: Node | None, start: int, tokens: Tokens, pages: Ids
    ) -> Node:
        self._next_number += 1
        encoder_pages = parent.encoder_pages if parent else 0
        self.version += 1
        number, now = self._next_number, self.version
        node = Node(key, parent, start, tokens, pages, number, encoder_pages, now, now)
        self._nodes[node.number] = node
        self._node_of[pages] = node.number
        return node

    def key(self, tokens: Tokens, page: int) -> bytes:
        """What a child is known by whose first page is page ``page`` of ``tokens``."""
        return tokens[page * self.page_size : (page + 1) * self.page_size].tobytes()

    def _common_pages(self, node: Node, tokens: Tokens, page: int) -> int:
        """How many pages ``node`` shares with ``tokens`` from ``page`` on, its own or its stop."""
        size = self.page_size
        ours = node.tokens[(page - node.start) * size :]
        theirs = tokens[page * size :][: len(ours)]
        ours = ours[: len(theirs)]
        if not len(ours):
            return 0
        differs = ours != theirs
        first = int(differs.argmax())
        same = first if differs[first] else len(theirs)
        return same // self.page_size

    def __iter__(self) -> Iterator[Node]:
        """All nodes but the roots."""
        for root in self._roots.values():
            yield from (n for n in _descendants(root) if n.parent is not None)

    def forget_empty_roots(self) -> None:
        """Forget namespaces without any history, when there are twice as many as the last time.

        Not while a queue is being matched: who matched nothing would be left with a dead root.
        """
        if len(self._roots) < self._most_roots:
            return
        empty = [name for name, root in self._roots.items() if not root.children]
        for name in empty:
            root = self._roots.pop(name)
            del self._nodes[root.number]
            self.change([root])
        self._most_roots = max(FEWEST_ROOTS, 2 * len(self._roots))

    def roots(self) -> list[Node]:
        return list(self._roots.values())

    def check(self) -> None:
        """Walk the tree; raise `CorruptPool` at the first thing out of place."""
        reachable = {n.number for root in self._roots.values() for n in _descendants(root)}
        none("tree nodes that are lost or not registered", reachable ^ {*self._nodes})
        seen: list[Ids] = []
        for node in self:
            self._check_node(node)
            held = node.pages[node.pages != 0]
            strangers = held[self._node_of[held] != node.number]
            none(f"tree node {node.number}: pages of another node", strangers)
            seen.append(held)
        if seen:
            distinct("virtual pages in the tree", np.concatenate(seen), len(self._node_of))

    def _check_node(self, node: Node) -> None:
        what = f"tree node {node.number}"
        parent = present(node.parent, f"{what}: no parent")
        none(
            f"{what}: lost by its parent",
            {node.number} - {n.number for n in parent.children.values()},
        )
        agree(f"{what}: first page", node.start, parent.stop)
        agree(f"{what}: tokens", len(node.tokens), len(node.pages) * self.page_size)
        none(f"{what}: without a page", [] if len(node.pages) else [node.number])
        for key in (
            self.key(node.tokens, 0),
            *(k for k, n in parent.children.items() if n is node),
        ):
            agree(f"{what}: key", node.key, key)
        hollow = not node.children and node.pages[-1] == 0
        none(f"{what}: a hollow end at page", [node.stop] if hollow else [])


def _ancestors(node: Node) -> Iterator[Node]:
    """``node`` and its parents, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def _descendants(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(current.children.values())
