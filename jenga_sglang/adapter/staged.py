"""Host arrays on their way to the device, without the host waiting for it.

A copy from ordinary memory may wait for all that its stream is to do before, and the stream that
schedules waits for forward passes. From pinned memory it never does. PyTorch keeps pinned blocks
for the next array and hands one out again when the copies from it have run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_device(values: NDArray[Any] | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The values on ``device``, in the order of its current stream."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def write_rows(
    table: torch.Tensor, rows: Sequence[int], starts: Sequence[int], values: Sequence[NDArray[Any]]
) -> None:
    """Put ``values[i]`` into row ``rows[i]`` of ``table`` from column ``starts[i]`` on.

    table: (rows, columns) int32 on a device, contiguous. As many copies and launches for a batch
    as for one row.
    """
    width = table.shape[1]
    places = [
        np.arange(row * width + start, row * width + start + len(new))
        for row, start, new in zip(rows, starts, values, strict=True)
    ]
    if any(start + len(new) > width for start, new in zip(starts, values, strict=True)):
        raise ValueError(f"rows: expected at most {width} columns")
    place = to_device(np.concatenate(places), table.device)
    new = to_device(np.concatenate(values).astype(np.int32, copy=False), table.device)
    table.view(-1).index_copy_(0, place, new)
