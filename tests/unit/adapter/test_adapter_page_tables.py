"""The page tables on the device follow the books, by one copy for a change of any size."""

from typing import Any

import core_inspector as inside
import pytest
import torch

from jenga_sglang.adapter.attention.page_tables import PageTableCopy
from jenga_sglang.core.cut.geometry import LayerGroupSpec, exact_lcm
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.manager import Manager

PAGES = 5000


def test_a_long_prompt_and_its_end_are_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = (
        LayerGroupSpec("full", (0,), Full(), 16, 16),
        LayerGroupSpec("window", (1,), SlidingWindow(8), 16, 16),
    )
    geometry = exact_lcm(specs, 1, 1 << 20)
    manager = Manager(geometry, max_requests=4, max_length=2 * PAGES)
    copy = PageTableCopy(manager, (0, 1), "cpu")
    copy.follow()
    launches: list[int] = []
    index_copy = torch.Tensor.index_copy_

    def counted(table: torch.Tensor, dim: int, index: torch.Tensor, new: torch.Tensor) -> Any:
        launches.append(len(index))
        return index_copy(table, dim, index, new)

    monkeypatch.setattr(torch.Tensor, "index_copy_", counted)
    running = manager.lock(manager.miss("a"))
    assert manager.reserve([(running, manager.new_pages(running, PAGES))])
    manager.extend(running, PAGES)
    for step in (
        lambda: None,
        lambda: manager.slide(running, PAGES),
        lambda: manager.release(running),
    ):
        step()
        copy.follow()
        for group in (0, 1):
            books = torch.from_numpy(inside.tables(manager)[group][:, 0]).int()
            assert torch.equal(copy.entries[group], torch.where(books == 0, -1, books))
    assert launches and launches[0] >= PAGES and len(launches) <= 3
