"""Data-parallel attention on a machine without an accelerator: how ranks pad their batches to each
other's sizes and gather them. SGLang has it for CPUs, for its own engine's processes alone."""

from __future__ import annotations

from typing import Any

from jenga_sglang.platform.late import after_import


def install() -> None:
    """Have batches padded in ordinary memory instead of pinned, rows copied without Triton, and
    gathered by gloo instead of an operator that there is on devices only."""
    after_import("sglang.srt.model_executor.forward_batch_info", _be_on_a_cpu)
    after_import("sglang.srt.distributed.parallel_state", _be_on_a_cpu)
    after_import("sglang.srt.layers.dp_attention", _copy_without_triton)


def _be_on_a_cpu(module: Any) -> None:
    # These two ask it nowhere else than where batches are padded and gathered, and at the end.
    module._is_cpu = True


def _copy_without_triton(module: Any) -> None:
    module.memcpy_func = module.memcpy_cpu
