"""How what a request has computed gets into the prefix tree."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from jenga_sglang.core.books.memory import Memory
from jenga_sglang.core.books.tree import Path, PrefixTree, Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.running import Running


@dataclass(frozen=True)
class Publisher:
    """Gives the tree the pages that it lacks, and the request the tree's where it has its own."""

    memory: Memory
    tree: PrefixTree

    def insert(self, running: Running, namespace: Hashable, tokens: Tokens) -> Path:
        """Have the tree hold all of ``tokens``, with the pages of ``running`` that it lacks."""
        num_pages = len(tokens) // self.tree.page_size
        path = self.tree.find(namespace, tokens, running.path)
        known = path.num_pages
        if known > running.tree_pages:
            self._merge(running, path)
        if num_pages > max(known, running.tree_pages):
            own = running.pages[known:num_pages]
            path = self.tree.extend(path, tokens, own)
            self._move(running, own, known)
        return path

    def _merge(self, running: Running, path: Path) -> None:
        """Repoint the private pages of ``running`` that ``path`` covers onto the tree's."""
        first = running.tree_pages
        mine = running.pages[first : path.num_pages]
        theirs = self.tree.pages(path)[first:]
        hollow = theirs == 0
        if hollow.any():
            fill = np.where(hollow, mine, 0)
            self.tree.replace(path, first, fill)
            self._move(running, fill, first)
        if not hollow.all():
            self.tree.change(self.tree.nodes_of(theirs[~hollow]))
            self.memory.merge(mine[~hollow], theirs[~hollow])
        running.merged(first, np.where(hollow, mine, theirs))

    def _move(self, running: Running, pages: Ids, depth: int) -> None:
        """Private ``pages`` are in the tree now, from page ``depth`` of the history; 0 is passed
        over (a hollow page of a prefix that the tree has since forgotten)."""
        (held,) = pages.nonzero()
        self.memory.move_to_tree(pages[held], held + depth, running.encoder_pages)
