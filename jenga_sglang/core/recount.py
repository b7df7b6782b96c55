"""Laws between the books: the memory's, the tree's and those of the running requests."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from jenga_sglang.core.corrupt import agree, none
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.memory import Memory
from jenga_sglang.core.pin import Pin
from jenga_sglang.core.tree import PrefixTree


def check_pins(memory: Memory, pins: Collection[Pin]) -> None:
    """Raise `CorruptPool` unless every page is pinned just as often as ``pins`` say."""
    for group in range(memory.num_groups):
        counts = np.zeros_like(memory.pins[group])
        for pin in pins:
            for start, stop in (*pin.held[group], *pin.held_for_others[group]):
                counts[pin.pages[start:stop]] += 1
            if group in memory.state_groups and pin.slot:
                counts[pin.slot] += 1
        _none_differs(f"group {group}: pins", memory.pins[group], counts)
    counts = np.zeros_like(memory.pins[-1])
    for pin in pins:
        counts[pin.row[pin.row != 0]] += 1
        counts[pin.slot] += bool(pin.slot)
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
