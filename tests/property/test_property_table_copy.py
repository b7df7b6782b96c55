"""Whoever copies the page tables needs to look at the changes alone."""

import core_inspector as inside
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, precondition
from test_property_manager import ManagerMachine

from jenga_sglang.core.books.memory import Memory


class TableCopyMachine(ManagerMachine):
    """The manager's machine, with a copy of its tables that is told only what changed."""

    followed: Memory | None = None

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def a_copy_that_follows_the_changes_is_equal(self) -> None:
        memory = inside.memory(self.world.manager)
        if memory is not self.followed:
            self.followed = memory
            memory.journal.record_changes()
            memory.journal.take_changes()
            self.copies = [table.copy() for table in memory.table]
        changed = memory.journal.take_changes()
        assert (np.diff(changed) > 0).all()
        for copy, table in zip(self.copies, memory.table, strict=True):
            copy[changed] = table[changed]
            assert (copy == table).all()


TestTableCopy = TableCopyMachine.TestCase
TestTableCopy.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
