"""What goes to the device for a batch: pinned, in as many copies as for one request."""

from typing import Any

import numpy as np
import pytest
import torch

from jenga_sglang.adapter import staged
from jenga_sglang.adapter.staged import to_device, write_rows


def test_copies_to_a_gpu_are_from_pinned_memory_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        done.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: Any, non_blocking: bool = False) -> torch.Tensor:
        done.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert to_device(np.arange(3), torch.device("cuda:1")).tolist() == [0, 1, 2]
    assert done == ["pinned", ("cuda:1", True)]


def test_rows_of_a_batch_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []

    def counted(values: Any, device: Any) -> torch.Tensor:
        copies.append(len(values))
        return to_device(values, device)

    monkeypatch.setattr(staged, "to_device", counted)
    table = torch.full((5, 9), -1, dtype=torch.int32)
    generator = np.random.default_rng(0)
    rows, starts = [4, 1, 2], [0, 3, 9]
    values = [generator.integers(0, 99, n).astype(np.int32) for n in (9, 2, 0)]
    expected = table.clone()
    for row, start, new in zip(rows, starts, values, strict=True):
        expected[row, start : start + len(new)] = torch.from_numpy(new)
    write_rows(table, rows, starts, values)
    assert torch.equal(table, expected)
    assert copies == [11, 11], "one of places, one of values"


def test_a_row_too_long_is_not_written_into_the_next() -> None:
    table = torch.zeros((3, 4), dtype=torch.int32)
    with pytest.raises(ValueError, match="at most 4 columns"):
        write_rows(table, [1], [2], [np.ones(3, np.int32)])
    assert not table.any()
