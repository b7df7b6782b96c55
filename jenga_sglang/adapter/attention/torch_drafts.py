"""What a draft model's steps read, in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class JengaTorchDraftSteps:
    """A backend for each step but the last of a chain of drafts: step i reads i + 1 tokens more
    than there are for good, and the last only picks a token."""

    def __init__(self, runner: ModelRunner, num_steps: int) -> None:
        self.attn_backends = [JengaTorchBackend(runner, step + 1) for step in range(num_steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)


def draft_backend(factory: Any, *, for_steps: bool) -> JengaTorchBackend | JengaTorchDraftSteps:
    """What SGLang's `DraftBackendFactory` builds: attention of the steps that draft, or of the pass
    over what was verified."""
    runner = factory.draft_model_runner
    if for_steps:
        return JengaTorchDraftSteps(runner, factory.speculative_num_steps)
    return JengaTorchBackend(runner)
