"""Laws between the books: the memory's, the tree's and those of the running requests."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.books.corrupt import agree, distinct, none
from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.books.tree import PrefixTree
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.running import Running


def check_memory(memory: Memory) -> None:
    """Recount every state of a page; raise `CorruptPool` at the first difference."""
    _check_virtual(memory, memory.free_virtual)
    check_places(memory)


def check_places(memory: Memory) -> None:
    """Recount where the pages of every group lie; raise `CorruptPool` at the first difference."""
    memory.large.check()
    memory.lru.check(memory.large.reclaimable())
    for g, table in enumerate(memory.table):
        _check_places(memory, g, *_check_table(memory, g, table))


def _check_virtual(memory: Memory, free: Ids) -> None:
    none("pins of virtual page 0, by group", np.flatnonzero(memory.pins[:, 0]))
    none("virtual page 0 in the tree", np.flatnonzero(memory.in_tree[:1]))
    distinct("free virtual pages", free, memory.num_virtual + 1)
    none("free virtual pages in the tree", free[memory.in_tree[free]])
    none("free virtual pages that are pinned", free[memory.pins[:, free].any(axis=0)])
    agree("virtual pages in the tree", memory.num_tree, int(memory.in_tree.sum()))
    pinned = memory.pins[-1] > 0
    in_use = int(np.count_nonzero(memory.in_tree & pinned))
    agree("pinned virtual pages in the tree", memory.num_tree_pinned, in_use)
    private = int(np.count_nonzero((~memory.in_tree & pinned)[: memory.num_virtual + 1]))
    known = private + memory.num_tree + len(free)
    agree("virtual pages private, in the tree or free", known, memory.num_virtual)


def _check_table(memory: Memory, group: int, table: Ids) -> tuple[Ids, Ids]:
    """Each small page has one virtual page, and the table read backwards says the same. Returns
    the virtual pages that the group holds, and the small pages, one by one."""
    none(f"group {group}: small pages of virtual page 0", table[0][table[0] != 0])
    rows, stripes = np.nonzero(table)
    none(f"group {group}: virtual pages held in part", rows[(table[rows] == 0).any(axis=1)])
    # What stripes share counts once.
    own = (stripes == 0) | ~_are_shared(table)[rows]
    rows, stripes = rows[own], stripes[own]
    small, virtual_of = table[rows, stripes], memory.virtual_of[group]
    distinct(f"group {group}: small pages in the table", small, len(virtual_of))
    none(f"group {group}: small pages of another virtual page", small[virtual_of[small] != rows])
    tenants = np.count_nonzero(virtual_of)
    agree(f"group {group}: small pages with a virtual page", tenants, len(small))
    return rows, small


def _check_places(memory: Memory, group: int, rows: Ids, small: Ids) -> None:
    """Large pages hold and use what the ``small`` pages and the pins of ``rows`` come to."""
    large = memory.large.large_of(group, small)
    owner, pins = memory.large.owner, memory.pins[group]
    none(f"group {group}: large pages of another owner", large[owner[large] != group])
    owned = np.flatnonzero(owner == group)
    used = pins[rows] > 0
    for what, booked, pages in (
        ("held", memory.large.held, large),
        ("used", memory.large.used, large[used]),
    ):
        recounted = np.bincount(pages, minlength=len(owner))
        wrong = owned[booked[owned] != recounted[owned]]
        none(f"group {group}: large pages whose {what} small pages are miscounted", wrong)
    pinned = np.flatnonzero(pins)
    none(f"group {group}: pinned pages that it does not hold", pinned[~memory.holds(group, pinned)])
    none(
        f"group {group}: pages pinned more often than by requests",
        pinned[pins[pinned] > memory.pins[-1][pinned]],
    )


def _are_shared(table: Ids) -> NDArray[np.bool_]:
    """Which virtual pages have one small page for all of several stripes."""
    shared: NDArray[np.bool_] = (table[:, -1] == table[:, 0]) & (table[:, 0] != 0)
    return shared & (table == table[:, :1]).all(axis=1) & (table.shape[1] > 1)


def check_passing(memory: Memory, all_running: Collection[Running]) -> None:
    """Raise `CorruptPool` unless stripes share small pages of just those pages that pass in the
    step of one of ``all_running``, which alone has them, outside the tree."""
    for group, table in enumerate(memory.table):
        passing = [p for r in all_running for g, p in r.passing if g == group]
        pages = np.concatenate([np.empty(0, np.int64), *passing])
        distinct(f"group {group}: passing pages", pages, memory.num_virtual + 1)
        shared = np.flatnonzero(_are_shared(table))
        agree(f"group {group}: shared pages", shared.tolist(), np.sort(pages).tolist())
        none(f"group {group}: passing pages in the tree", pages[memory.in_tree[pages]])


def check_pins(memory: Memory, all_running: Collection[Running], aside: Ids) -> None:
    """Raise `CorruptPool` unless every page is pinned just as often as ``all_running`` say, and
    once more where it is ``aside``."""
    for group in range(memory.num_groups):
        counts = np.zeros_like(memory.pins[group])
        for running in all_running:
            for start, stop in (*running.held[group], *running.held_for_others[group]):
                counts[running.pages[start:stop]] += 1
            for of_group, pages in running.passing:
                counts[pages] += of_group == group
            if group in memory.state_groups and running.state_page:
                counts[running.state_page] += 1
        _none_differs(f"group {group}: pins", memory.pins[group], counts)
    counts = np.zeros_like(memory.pins[-1])
    counts[aside[aside != 0]] += 1
    for running in all_running:
        counts[running.row[running.row != 0]] += 1
        counts[running.state_page] += bool(running.state_page)
    _none_differs("pins of virtual pages", memory.pins[-1], counts)


def _none_differs(what: str, booked: Ids, recounted: Ids) -> None:
    wrong = np.flatnonzero(booked != recounted)
    table = zip(wrong.tolist(), booked[wrong].tolist(), recounted[wrong].tolist(), strict=True)
    none(f"{what}: (page, in the books, recounted)", table)


def check_tree_pages(memory: Memory, tree: PrefixTree) -> None:
    """Raise `CorruptPool` unless tree and memory name the same pages, at the same places."""
    in_tree = np.zeros_like(memory.in_tree)
    for node in tree:
        held = np.flatnonzero(node.pages)
        pages = node.pages[held]
        in_tree[pages] = True
        misplaced = pages[memory.depth[pages] != node.start + held]
        none(f"tree node {node.number}: pages at another depth in the books", misplaced)
        encoder = pages[memory.encoder_pages[pages] != node.encoder_pages]
        none(f"tree node {node.number}: pages with other encoder pages in the books", encoder)
    none(
        "pages in the tree or in the books, not in both", np.flatnonzero(in_tree != memory.in_tree)
    )


def check_retired(memory: Memory, retired: Collection[int]) -> None:
    """Raise `CorruptPool` when a group that was retired holds anything."""
    for group in retired:
        agree(f"retired group {group}: held small pages", memory.large.num_held[group], 0)
