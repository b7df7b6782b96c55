"""SGLang's runner of decode graphs on a CPU.

What a CUDA graph would record is kept as the function that does it, and run again for a replay: on
the static tensors of the capture, with the attention backends as they were at the capture. So what
a backend hands to its kernels anew each step, and not in place, is not seen by a replay here
either.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

CAPTURED = [1, 2, 4, 8]
REPLAYS: Counter[tuple[int, int]] = Counter()  # by size of the graph, and of the batch


class HostGraphs:
    """A backend of SGLang's graph runner."""

    def __init__(self, runner: Any, **kwargs: Any) -> None:
        attention = runner.attn_backend
        self._attention = [attention, *(getattr(attention, "attn_backend_list", None) or [])]
        self._kept: dict[Any, tuple[Callable[[], Any], list[dict[str, Any]]]] = {}

    def capture_session(self, stream: Any) -> Any:
        return nullcontext()

    replay_session = nullcontext

    def capture_one(self, key: Any, forward: Callable[[], Any], **kwargs: Any) -> None:
        forward()
        self._kept[key] = (forward, [dict(vars(backend)) for backend in self._attention])

    def can_run(self, batch: Any, key: Any) -> bool:
        return key in self._kept

    def replay(self, key: Any, batch: Any, **kwargs: Any) -> Any:
        forward, captured = self._kept[key]
        REPLAYS[key.size, batch.batch_size] += 1
        with self._as_captured(captured):
            return forward()

    @contextmanager
    def _as_captured(self, captured: list[dict[str, Any]]) -> Iterator[None]:
        now = [dict(vars(backend)) for backend in self._attention]
        # What layers leave for later they have left at the capture: a device runs no Python.
        left = [layers for fields in captured for layers in fields.get("captured", {}).values()]
        as_left = [dict(layers) for layers in left]
        self._set(captured)
        try:
            yield
        finally:
            self._set(now)
            for layers, before in zip(left, as_left, strict=True):
                layers.update(before)

    def _set(self, all_fields: list[dict[str, Any]]) -> None:
        for backend, fields in zip(self._attention, all_fields, strict=True):
            vars(backend).clear()
            vars(backend).update(fields)


def decode_in_graphs(scheduler: Any) -> None:
    """For a `Job` to do before: decodes of up to eight requests are replayed, or steps that verify
    drafts."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.model_executor.graph_shared_output import GraphSharedOutput
    from sglang.srt.model_executor.runner import decode_cuda_graph_runner as module

    @contextmanager
    def graph_capture(stream: Any = None) -> Iterator[Any]:
        yield SimpleNamespace(stream=None)

    module.graph_capture = graph_capture
    module.get_or_create_global_graph_capture_stream = lambda: None
    module.get_batch_sizes_to_capture = lambda *args, **kwargs: (CAPTURED, [])
    module.resolve_decode_backend = HostGraphs
    # On a CPU SGLang asks for graphs of decodes alone.
    ForwardMode.is_cpu_graph = ForwardMode.is_cuda_graph
    torch.cpu.is_current_stream_capturing = lambda: False  # type: ignore[attr-defined]
    runner = scheduler.tp_worker.model_runner
    most = max(CAPTURED) * runner.decode_num_tokens_per_req()
    runner.graph_shared_output = GraphSharedOutput(device=torch.device("cpu"), max_rows=most)
    # As the scheduler runs its batches. Operators in place of kernels write into views, and
    # Falcon-Mamba's model, unlike others, does not turn gradients off itself.
    with torch.no_grad():
        runner.decode_cuda_graph_runner = module.DecodeCudaGraphRunner(runner)


def replays(scheduler: Any) -> Counter[tuple[int, int]]:
    """For a `Job` to say after."""
    return REPLAYS
