"""What ranks agree upon, where what happens to one depends on its storage and its clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """Least numbers over the ranks of a process group; its own where it is alone."""

    def __init__(self, group: Any) -> None:
        self._group = group if group is not None and dist.get_world_size(group=group) > 1 else None

    def least(self, *numbers: int) -> list[int]:
        """Of each of ``numbers``, the least of any rank. All ranks must ask for as many."""
        if self._group is None:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self._group)
        return [int(n) for n in tensor.tolist()]

    def longest(self, length: Any, most: int) -> int:
        """The greatest number, at most ``most``, that ``length`` leaves as it is on every rank.

        ``length(n)`` is what one rank has of ``n``: at most ``n``, and of itself just as much. The
        number only ever drops, and 0 stays 0.
        """
        while True:
            own = length(most)
            least, minus_greatest = self.least(own, -own)
            if least == -minus_greatest:
                return least
            most = least

    def beside(self) -> Agreement:
        """One of the same ranks that another thread may ask at the same time. A collective call."""
        if self._group is None:
            return self
        from sglang.srt.distributed.parallel_state import create_custom_parallel_group

        ranks: Sequence[int] = dist.get_process_group_ranks(self._group)
        return Agreement(create_custom_parallel_group(group_ranks=list(ranks), backend="gloo"))

    def end(self) -> None:
        """Give back what `beside` has made."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
