"""Builds SGLang's scheduler in this process, with a dummy model and a given KV budget.

A process can build one scheduler: SGLang keeps its configuration and process groups in globals.
"""

import gc
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from benchmarks.replay.backends import BACKENDS
from benchmarks.replay.dummy.checkpoint import write_checkpoint
from benchmarks.replay.geometry import Geometry
from benchmarks.replay.moved import DEVICE_WORK
from benchmarks.replay.spec import RunSpec

MODEL_PACKAGE = "benchmarks.replay.dummy"
TARGET, DRAFT = "target", "draft"


def build_scheduler(spec: RunSpec) -> Any:
    """Return a `sglang.srt.managers.scheduler.Scheduler` that owns `spec.kv_bytes` of KV memory."""
    backend = BACKENDS[spec.backend]
    spec.geometry.require_supported()
    backend.check(spec)
    prepare_process()
    backend.before_args(spec)
    if spec.geometry.state_groups:
        _register_states()
    with TemporaryDirectory(prefix="replay-model-") as folder:
        for name, geometry in models(spec).items():
            (Path(folder) / name).mkdir()
            write_checkpoint(Path(folder) / name, geometry)
        return _build(spec, Path(folder))


def models(spec: RunSpec) -> dict[str, Geometry]:
    """The models of a run by the names of their folders."""
    drafting = spec.drafting
    if drafting is None:
        return {TARGET: spec.geometry}
    drafting.draft.require_supported()
    return {TARGET: spec.geometry, DRAFT: drafting.draft}


def _register_states() -> None:
    """Make SGLang treat the dummy model as one with recurrent layers."""
    from sglang.srt.configs import Lfm2Config
    from sglang.srt.configs.linear_attn_model_registry import (
        LinearAttnModelSpec,
        register_linear_attn_model,
    )

    register_linear_attn_model(
        LinearAttnModelSpec(
            config_class=Lfm2Config,
            backend_class_name="never built",
            arch_names=["ReplayForCausalLM"],
        )
    )


def prepare_process() -> None:
    """Set what SGLang reads when it is imported, and keep its log to errors."""
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = MODEL_PACKAGE
    # The replay computes nothing on a device: it runs on CPU tensors even where there is one.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("SGLANG_PLATFORM", "jenga_cpu")
    # SGLang's leak checks raise instead of warning.
    os.environ["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE"] = "1"
    # Retractions warn, thousands of times in a tight run; they are counted instead.
    logging.disable(logging.WARNING)
    import torch

    # One thread, so that CPU time of this thread is all CPU time.
    torch.set_num_threads(1)


def _build(spec: RunSpec, folder: Path) -> Any:
    from sglang.srt.managers import scheduler as scheduler_module
    from sglang.srt.server_args import PortArgs, ServerArgs

    backend = BACKENDS[spec.backend]
    server_args = ServerArgs(**_server_args(spec, folder) | backend.server_args(spec))
    port_args = PortArgs.init_new(server_args)
    scheduler_module.publish(
        server_args,
        role="scheduler",
        ranks=scheduler_module.SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0),
    )
    backend.after_publish(spec)
    _replace_before_build(spec)
    scheduler = scheduler_module.Scheduler(server_args, port_args)
    _silence(scheduler)
    # As a server does when it has warmed up: what was built is not gone through again and again.
    gc.freeze()
    return scheduler


def _server_args(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Return the arguments that all backends share."""
    return {
        "model_path": str(folder / TARGET),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "device": "cpu",
        "attention_backend": "torch_native",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": not spec.overlap,
        # Beside drafts SGLang decodes one token of a request whose step is mixed.
        "enable_mixed_chunk": spec.drafting is None,
        "chunked_prefill_size": spec.chunk_tokens,
        "max_running_requests": spec.max_running_requests,
        "page_size": spec.page_size_tokens,
        # Unused, because the budget is given; set so that no platform default bounds the pool.
        "mem_fraction_static": 0.8,
        "watchdog_timeout": 3600,
        "log_level": "error",
        **_draft_args(spec, folder),
    }


def _draft_args(spec: RunSpec, folder: Path) -> dict[str, Any]:
    drafting = spec.drafting
    if drafting is None:
        return {}
    return {
        "speculative_algorithm": drafting.algorithm,
        "speculative_draft_model_path": str(folder / DRAFT),
        "speculative_num_steps": drafting.steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": drafting.verified_tokens,
    }


def _replace_before_build(spec: RunSpec) -> None:
    """Replace the memory profiling by the budget, and what only a forward pass would need."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
    from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
    from sglang.srt.model_executor.model_runner import ModelRunner

    def profile(self: Any, pre_model_load_memory: int) -> int:
        if self.mambaish_config is None:
            return spec.shrunk_kv_bytes
        # SGLang's profiling takes the states' pool off the memory that is left, in GiB.
        return int(self._handle_max_mamba_cache(spec.shrunk_kv_bytes / (1 << 30)) * (1 << 30))

    def never_sleep(self: Any) -> None:
        self.idle_sleeper = None

    def no_backends(self: Any) -> None:
        self.attn_backend = self.decode_attn_backend = SimpleNamespace()

    def no_channels(**kwargs: Any) -> SchedulerIpcChannels:
        return SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=SenderWrapper(None),
            send_to_detokenizer=SenderWrapper(None),
            send_metrics_from_scheduler=None,
        )

    Scheduler.init_idle_sleeper = never_sleep
    KVCacheConfigurator._profile_available_bytes = profile
    ModelRunner.init_attention_backends = no_backends
    SchedulerIpcChannels.create = no_channels
    if spec.drafting is not None:
        _draft_nothing()
    if spec.geometry.state_groups:
        _count_state_copies()
    if any(len({g.row_bytes for g in m.row_groups}) > 1 for m in models(spec).values()):
        _price_groups_apart(ModelConfig)


def _draft_nothing() -> None:
    """Build the draft model for its layers alone: its worker drafts nothing."""
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker

    def no_backends(self: Any) -> None:
        self.draft_attn_backend = self.draft_extend_attn_backend = SimpleNamespace()

    def nothing_shared(self: Any) -> None:
        """The model has neither embeddings nor a head."""

    EagleDraftWorker.init_attention_backend = no_backends
    EagleDraftWorker.init_lm_head = nothing_shared


def _count_state_copies() -> None:
    """Count what copies a request's states, which nobody reads."""
    from sglang.srt.mem_cache.memory_pool import MambaPool
    from sglang.srt.mem_cache.unified_memory_pool import UnifiedMambaPool

    for pool in (MambaPool, UnifiedMambaPool):
        pool.copy_from = lambda self, *indices: DEVICE_WORK.copy_states(self, *indices)


def _price_groups_apart(model_config_class: Any) -> None:
    """Make SGLang read the window layers' own head shape, as it does for a list of models."""
    derive = model_config_class._derive_hybrid_model

    def derive_hybrid_model(self: Any) -> None:
        derive(self)
        self.is_hybrid_swa_compress = True

    model_config_class._derive_hybrid_model = derive_hybrid_model


def _silence(scheduler: Any) -> None:
    """Drop output streaming, statistics and load publishing of a built scheduler."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    scheduler.load_snapshot_writer = None
    scheduler.load_publisher = SimpleNamespace(publish_load_stat=nothing)
    # Classes with slots: replaced on the class, since the process has one scheduler.
    type(scheduler.output_streamer).stream_output = nothing
    for name in ("report_prefill_stats", "report_decode_stats", "log_batch_result_stats"):
        setattr(type(scheduler.metrics_reporter), name, nothing)
