"""What changed in the books since somebody last asked: page tables, freed pages, and the tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jenga_sglang.core.ids import Ids, each_once


@dataclass(frozen=True)
class TreeChange:
    """Pages that ``group`` has begun to hold for the tree, or holds no more; in order."""

    group: int
    held: bool
    virtual: Ids


class Journal:
    """Three kinds of notes. Each is kept from the call of its ``record_…`` on."""

    def __init__(self) -> None:
        self._changed: list[Ids] | None = None
        self._freed: list[tuple[int, Ids]] | None = None
        self._tree_changes: list[TreeChange] | None = None

    def record_changes(self) -> None:
        """Keep note of the pages and slots whose table entries change, for `take_changes`."""
        self._changed = self._changed or []

    def take_changes(self) -> Ids:
        """Virtual pages and slots whose entry in some group changed since the last call:
        ascending, once each. A copy of the tables that follows them is equal to the tables."""
        changed, self._changed = self._changed or [], []
        return each_once(np.concatenate(changed)) if changed else np.empty(0, np.int64)

    def record_freed(self) -> None:
        """Keep note of the small pages that are freed, for `take_freed` (a debugging aid)."""
        self._freed = []

    def take_freed(self) -> list[tuple[int, Ids]]:
        """(group, small pages) freed since the last call, in order."""
        freed, self._freed = self._freed or [], []
        return freed

    def record_tree(self) -> None:
        """Keep note of what the tree's pages gain and lose, for `take_tree_changes`."""
        self._tree_changes = []

    def take_tree_changes(self) -> list[TreeChange]:
        """What happened since the last call, in order."""
        changes, self._tree_changes = self._tree_changes or [], []
        return changes

    @property
    def records_tree(self) -> bool:
        return self._tree_changes is not None

    def note_changed(self, *virtual: Ids) -> None:
        """The table entries of ``virtual`` pages or slots have changed."""
        if self._changed is not None:
            self._changed += virtual

    def note_freed(self, group: int, small: Ids) -> None:
        """``small`` pages of ``group`` are free now."""
        if self._freed is not None:
            self._freed.append((group, small))

    def note_tree(self, group: int, held: bool, virtual: Ids) -> None:
        """``group`` begins to hold ``virtual`` pages for the tree, or holds them no more."""
        if self._tree_changes is not None and len(virtual):
            self._tree_changes.append(TreeChange(group, held, virtual))
