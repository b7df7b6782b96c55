"""FlashInfer on Jenga pages: one plan per layer group and step, whatever the number of layers.

A plan depends on lengths alone, which the host knows; so planning reads nothing back, and layers
and stripes of a group share it. Tables start at the first page that some query still sees: a
windowed layer reads its window, and its kernel the same pages whatever the length of the history.

Which plans a CUDA graph needs is seen while it is warmed up; they are made again before each
replay, outside the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_schedule, max_prefill_buffer_tokens
from sglang.srt.utils import get_cuda_graph_max_batch_size

from flashinfer_ext import check_kernel_limits
from flashinfer_ext.latent import FA3_CKV_DIMS, MOST_TILES, check_shapes, most_tiles
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner, Plan
from flashinfer_ext.table_spec import TableSpec
from flashinfer_ext.variants import Variant, use_prebuilt
from flashinfer_ext.xqa import SEMAPHORE_BYTES, XqaDecode
from jenga_sglang import settings
from jenga_sglang.adapter.attention.device_backend import Call, DeviceBackend, Step
from jenga_sglang.refusal import refuse

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.model_runner import ModelRunner


PREFILL_VARIABLE = settings.name_of("prefill_kernel")
DECODE_VARIABLE = settings.name_of("decode_kernel")
MODULES_VARIABLE = settings.name_of("flashinfer_modules")
# The architectures, as major compute capability, that a kernel is written for.
ARCHITECTURES = {"fa3": (9,), "xqa": (9, 10, 12)}
XQA_SCRATCH_BYTES = 128 << 20

# A layer group, and the attention of some of its layers.
Key = tuple[int, AttentionSpec]


@dataclass(frozen=True)
class Kernels:
    """Which of FlashInfer's kernels run: ``prefill`` fa2, fa3, or auto for fa3 wherever this GPU
    has it and the group fits; ``decode`` fa2 or xqa."""

    prefill: str = "auto"
    decode: str = "fa2"

    @classmethod
    def from_environment(cls) -> Kernels:
        """As the environment asks for; raises ``SystemExit`` for what this GPU does not have."""
        chosen = settings.current()
        return cls(
            _on_this_gpu(PREFILL_VARIABLE, chosen.prefill_kernel),
            _on_this_gpu(DECODE_VARIABLE, chosen.decode_kernel),
        )


def device_major() -> int | None:
    """Major compute capability of the GPU; None without one."""
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None


def _on_this_gpu(variable: str, name: str) -> str:
    major = device_major()
    if name in ARCHITECTURES and major not in (None, *ARCHITECTURES[name]):
        raise refuse(
            f"{variable}={name}",
            f"is for GPUs of compute capability {ARCHITECTURES[name]}, this one has {major}; "
            "leave it out",
        )
    return name


class JengaFlashInferBackend(DeviceBackend):
    """`--attention-backend flashinfer` under Jenga."""

    name = "flashinfer"
    instead = "triton or jenga_torch"

    def __init__(self, runner: ModelRunner, drafted: int = 0) -> None:
        self.use = Kernels.from_environment()
        self.entry_tokens = runner.page_size
        self._prefills: dict[int, str] = {}
        super().__init__(runner, drafted)
        self._see_images_as_text()
        if folder := settings.current().flashinfer_modules:
            use_prebuilt(str(folder))
        size = envs.SGLANG_FLASHINFER_WORKSPACE_SIZE.get()
        self._workspace = self._shared.workspace("flashinfer", size)
        xqa_bytes = SEMAPHORE_BYTES + XQA_SCRATCH_BYTES if self.use.decode == "xqa" else 0
        self._xqa_workspace = self._shared.workspace("xqa", xqa_bytes)
        self._max_parts = get_cuda_graph_max_batch_size(self.max_batch)
        self._max_rows = self._most_queries(runner)
        if self._chunks:
            self._max_parts = 2 * self._max_parts + self._max_rows // self._chunks[0]
        self._check_largest_latent_batch()
        self._keys: dict[tuple[RadixAttention, bool, bool], Key] = {}
        self._planners: dict[Key, GroupPlanner] = {}
        self._xqa: dict[Key, XqaDecode] = {}
        self._plans: dict[Key, Plan] = {}
        # By layer: the model's, and the same in float32.
        self._sinks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # A dict for its order: every rank plans in the same one.
        self._graph_keys: dict[Key, None] = {}

    def _most_queries(self, runner: ModelRunner) -> int:
        """Query rows of the largest batch: a whole prompt where prompts are not cut, and one of
        every request that decodes in the same batch; or drafts of every request."""
        schedule = get_schedule()
        chunk = schedule.chunked_prefill_size
        whole = max(schedule.max_prefill_tokens or 0, runner.model_config.context_len)
        tokens = chunk if chunk and chunk > 0 else whole
        prompts = max(tokens + self.page_size, max_prefill_buffer_tokens()) + self.max_batch
        # A tail is at least what a step drafts.
        return max(prompts, self._max_parts * self.pool.manager.tail_tokens)

    def _check_largest_latent_batch(self) -> None:
        """Refuse a start whose largest batch is more than a plan over latent rows holds."""
        for layer in (x for g in self.groups if self._is_latent(g) for x in self.layers[g]):
            sizes = (self._max_rows, self._max_parts, layer.tp_q_head_num)
            most = most_tiles(*sizes, self.device)
            if most > MOST_TILES:
                raise refuse(
                    "--attention-backend flashinfer",
                    f"plans at most {MOST_TILES} tiles of latent rows, and batches of "
                    f"{self._max_rows} tokens with {layer.tp_q_head_num} heads take up to {most}; "
                    "lower --chunked-prefill-size or choose --attention-backend triton or fa3",
                )

    def _is_latent(self, group: int) -> bool:
        return self.pool.layouts[group].is_latent

    def kernels(self, group: int) -> Sequence[str]:
        if self._is_latent(group):
            for layer in self.layers[group]:
                check_shapes(self._spec(layer, group, False, False))
            return ("mla",)
        on_tensor_cores = any(
            self._spec(layer, group, True, False).decodes_on_tensor_cores
            for layer in self.layers[group]
        )
        decode = "fa2_prefill" if on_tensor_cores else "fa2_decode"
        return (f"{self.prefill(group)}_prefill", "xqa" if self.use.decode == "xqa" else decode)

    def prefill(self, group: int) -> str:
        """The kernel of the group's prefills, fa2 or fa3, and over latent rows of its decodes too.
        SGLang's own default on Hopper is an FA3; what its shapes or dtypes do not fit keeps FA2."""
        if self.use.prefill != "auto":
            return self.use.prefill
        if group not in self._prefills:
            fits = device_major() in ARCHITECTURES["fa3"] and self._fits_fa3(group)
            self._prefills[group] = "fa3" if fits else "fa2"
        return self._prefills[group]

    def _fits_fa3(self, group: int) -> bool:
        layout = self.pool.layouts[group]
        if layout.is_latent:
            return self.pool.groups[group].latent_dim in FA3_CKV_DIMS
        problems = check_kernel_limits(self.pool.buffer, layout, ("fa3_prefill",))
        return layout.dtype == self.q_dtype and not problems

    def check_layer(self, layer: RadixAttention) -> None:
        if layer.xai_temperature_len > 0:
            raise ValueError(f"layer {layer.layer_id} scales logits by position")
        if self.use.decode == "xqa" and layer.logit_cap > 0:
            raise ValueError(
                f"layer {layer.layer_id} has a soft cap, XQA has none: leave out {DECODE_VARIABLE}"
            )
        if self._is_latent(self.pool.place[layer.layer_id].group):
            self._check_latent_layer(layer)
        elif self.use.prefill == "fa3" and self.kv_dtype(layer) != self.q_dtype:
            raise ValueError(
                f"FA3 reads KV of the queries' dtype {self.q_dtype}, not {self.kv_dtype(layer)}: "
                f"leave out {PREFILL_VARIABLE}"
            )

    def _check_latent_layer(self, layer: RadixAttention) -> None:
        if self.use.decode == "xqa":
            raise ValueError(f"XQA reads no latent rows: leave out {DECODE_VARIABLE}")
        self._spec(layer, self.pool.place[layer.layer_id].group, False, False)

    def table_spec(self, group: int) -> TableSpec:
        is_dense = self.use.decode == "xqa"
        return TableSpec(self.trim(group), 1, write_mul=self.page_size, dense=is_dense)

    def begin(self, step: Step) -> None:
        self._plans = {}
        if self._sinks:
            # One launch for all layers: weights may have been updated in place.
            given, logits = zip(*self._sinks.values(), strict=True)
            torch._foreach_copy_(logits, given)
        if step.in_graph:
            for key in self._graph_keys:
                self._plan(key, step)

    def attend(self, call: Call, step: Step) -> None:
        layer, sinks = call.layer, call.sinks
        key = self._key(layer, call.place.group, step.is_decode, sinks is not None)
        caches = self.pool.get_kv_buffer(layer.layer_id)
        sink_logits = None if sinks is None else self._logits_of(layer, sinks)
        k_scale, v_scale = self.descales(layer)
        options = {"stripe": call.table, "out": call.out, "k_scale": k_scale, "v_scale": v_scale}
        if step.is_decode and self.use.decode == "xqa":
            tables = call.of_group.tables
            self._xqa_decode(key).run(call.q, *caches, tables, sinks=sink_logits, **options)
            return
        plan = self._plans.get(key) or self._plan(key, step)
        extra = () if sink_logits is None else (sink_logits,)
        plan.run(call.q, *caches, *extra, **options)

    def _logits_of(self, layer: RadixAttention, sinks: torch.Tensor) -> torch.Tensor:
        """The layer's sinks as kernels read them, float32. They are weights, which stay where they
        are and are converted in `begin`; any others are converted here, each time."""
        if sinks.dtype == torch.float32:
            return sinks
        if layer.layer_id not in self._sinks:
            self._sinks[layer.layer_id] = (sinks, sinks.float())
        given, logits = self._sinks[layer.layer_id]
        return logits if given.data_ptr() == sinks.data_ptr() else sinks.float()

    def _key(self, layer: RadixAttention, group: int, is_decode: bool, has_sinks: bool) -> Key:
        """The layer's kind, worked out once."""
        asked = (layer, is_decode, has_sinks)
        if asked not in self._keys:
            self._keys[asked] = (group, self._spec(layer, group, is_decode, has_sinks))
        return self._keys[asked]

    def _spec(
        self, layer: RadixAttention, group: int, is_decode: bool, has_sinks: bool
    ) -> AttentionSpec:
        """The layer's attention; FA3 takes part in prefills only, and in all over latent rows."""
        window_left = self.trim(group).window_left
        is_latent = self._is_latent(group)
        backend = "fa2" if is_decode and not is_latent else self.prefill(group)
        dims = (layer.qk_head_dim, layer.v_head_dim)
        dtypes = (self.q_dtype, self.pool.layouts[group].dtype)
        is_xqa = is_decode and self.use.decode == "xqa"
        variant = None
        if has_sinks and not is_xqa:
            variant = Variant("sink", *dtypes, *dims, window_left >= 0, backend)
        return AttentionSpec(
            layer.tp_q_head_num,
            layer.tp_k_head_num,
            *dims,
            self.entry_tokens,
            *dtypes,
            layer.scaling,
            window_left,
            layer.logit_cap,
            causal=not layer.is_cross_attention,
            backend=backend,
            variant=variant,
            is_latent=is_latent,
        )

    def _plan(self, key: Key, step: Step) -> Plan:
        """Plan the step for layers of one kind; remembered where a graph will need it again."""
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a layer was not run while its CUDA graph was warmed up")
        group, spec = key
        planner = self._planners.get(key)
        if planner is None:
            planner = self._planners[key] = GroupPlanner(
                spec, self._workspace, self._max_parts, self._max_rows
            )
        of_group = step.groups[group]
        if step.is_decode:
            plan = planner.decode(step.num_tokens, of_group.tables, cuda_graph=step.in_graph)
            plan.plan(of_group.counts)
        else:
            queries = step.num_tokens if step.in_graph else None
            plan = planner.prefill(of_group.tables, queries)
            plan.plan(of_group.counts, of_group.rows.q_lens)
        if step.in_graph:
            self._graph_keys[key] = None
        self._plans[key] = plan
        return plan

    def _xqa_decode(self, key: Key) -> XqaDecode:
        if key not in self._xqa:
            self._xqa[key] = XqaDecode(key[1], self._xqa_workspace)
        return self._xqa[key]
