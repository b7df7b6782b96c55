"""Copies between the tiers as a GPU makes them, without one: they are made when the next step runs
on the stream, or somebody waits, and not when they are asked for."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from jenga_sglang.adapter.host_copies import HostCopies, StreamCopies


class LateStream:
    """Work in order, none of it done before somebody waits."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def synchronize(self) -> None:
        work, self.work = self.work, []
        for do in work:
            do()


class LateEvent:
    def record(self, stream: LateStream) -> None:
        self._stream = stream
        stream.work.append(self._note)

    def _note(self) -> None:
        self.reached = time.perf_counter()

    def synchronize(self) -> None:
        self._stream.synchronize()

    def elapsed_time(self, other: "LateEvent") -> float:
        """Milliseconds."""
        return (other.reached - self.reached) * 1000


class LateModule:
    """What `StreamCopies` asks of `torch.cuda`."""

    def stream(self, stream: LateStream) -> Any:
        return nullcontext()

    def Event(self, enable_timing: bool) -> LateEvent:
        assert enable_timing
        return LateEvent()


class LateCopies(StreamCopies):
    """`StreamCopies` on `LateStream`, with a kernel of plain torch."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._own_stream = LateStream()
        self._module = LateModule()
        self.num_late = 0

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return HostCopies.allocate(self, num_bytes)

    def _to_device(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers

    def _copy(
        self,
        src: torch.Tensor,
        dst: torch.Tensor,
        src_indices: torch.Tensor,
        dst_indices: torch.Tensor,
        item_size: int,
        block_quota: int,
    ) -> None:
        assert src.is_contiguous() and dst.is_contiguous() and item_size % 16 == 0

        def do() -> None:
            self.num_late += len(src_indices)
            dst.view(-1, item_size)[dst_indices] = src.view(-1, item_size)[src_indices]

        self._own_stream.work.append(do)


def install() -> None:
    """Patch this process, before its pools exist: copies are late until the next step."""
    from sglang.srt.model_executor.model_runner import ModelRunner

    from jenga_sglang.adapter.hooks import backends

    copies = LateCopies()
    forward = ModelRunner.forward

    def behind_copies(self: Any, *args: Any, **kwargs: Any) -> Any:
        copies._own_stream.synchronize()
        return forward(self, *args, **kwargs)

    ModelRunner.forward = behind_copies
    backends._copies = lambda runner: copies  # type: ignore[assignment]


def num_late(scheduler: Any) -> int:
    """How many pieces have been copied so."""
    copies: LateCopies = scheduler.tree_cache.token_to_kv_pool_host.copies
    return copies.num_late
