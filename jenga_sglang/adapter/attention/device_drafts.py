"""What a draft model's steps read, through kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jenga_sglang import flags
from jenga_sglang.adapter.attention.device_backend import DeviceBackend

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class DeviceDraftSteps:
    """A backend for each step but the last of a chain of drafts: step i reads i + 1 tokens more
    than there are for good, and the last only picks a token. Tables of all are built before the
    first, in a graph too, whose kernels read them where they are."""

    needs_cpu_seq_lens = True

    def __init__(self, backend: type[DeviceBackend], runner: ModelRunner, num_steps: int) -> None:
        self.attn_backends = [backend(runner, step + 1) for step in range(num_steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        for backend in self.attn_backends:
            backend.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata_out_graph(forward_batch, in_capture)

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        """Nothing: what changes from step to step is written before a graph runs."""


def backend_class(name: str) -> type[DeviceBackend]:
    """The backend of this name; imported when it is asked for, with the kernels it brings."""
    if name == flags.TRITON_BACKEND:
        from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend

        return JengaTritonBackend
    from jenga_sglang.adapter.attention.flashinfer_backend import JengaFlashInferBackend

    return JengaFlashInferBackend


def draft_backend(factory: Any, name: str, *, for_steps: bool) -> DeviceBackend | DeviceDraftSteps:
    """What SGLang's `DraftBackendFactory` builds: attention of the steps that draft, or of the pass
    over what was verified."""
    runner = factory.draft_model_runner
    if for_steps:
        return DeviceDraftSteps(backend_class(name), runner, factory.speculative_num_steps)
    return backend_class(name)(runner)
