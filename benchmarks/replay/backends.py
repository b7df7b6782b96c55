"""The memory backends, and all that differs between them.

Each says which server arguments it adds and what must be in place before SGLang's scheduler is
built. Everything else, the cost model and the trace included, is the same for all.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.replay import hicache_on_cpu, host_copies, unified_on_cpu
from benchmarks.replay.geometry import Geometry, NotYetSupportedError
from benchmarks.replay.held import PoolBytes, token_pool_bytes
from benchmarks.replay.moved import DEVICE_WORK
from benchmarks.replay.spec import RATIOS, RunSpec
from jenga_sglang import settings

JENGA_POLICY_VARIABLE = settings.name_of("policies")


def _nothing(spec: RunSpec) -> None:
    """Need no preparation."""


def _no_arguments(spec: RunSpec) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Backend:
    """How one memory backend differs from stock SGLang.

    `server_args` returns fields of `ServerArgs`. `before_args` runs before `ServerArgs` exists
    (plug-ins), `after_publish` between publishing the arguments and building the scheduler.
    `pool_bytes` reads the bytes that the backend holds off a built scheduler, in shrunk bytes.
    `before_forward` sees every batch before it runs. `host_bytes` are those of host memory below
    the pool, shrunk likewise. ``learnt`` is what the backend has found out while it ran.
    """

    check: Callable[[RunSpec], None] = _nothing
    server_args: Callable[[RunSpec], dict[str, Any]] = _no_arguments
    before_args: Callable[[RunSpec], None] = _nothing
    after_publish: Callable[[RunSpec], None] = _nothing
    pool_bytes: Callable[[Any], PoolBytes] = token_pool_bytes
    before_forward: Callable[[Any], None] = lambda batch: None
    host_bytes: Callable[[Any], int] = lambda scheduler: 0
    learnt: Callable[[Any], dict[str, Any]] = lambda scheduler: {}


def _ratio_arguments(spec: RunSpec) -> dict[str, Any]:
    ratios = {name: getattr(spec, name) for name in RATIOS}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _at_most_one_window(spec: RunSpec) -> None:
    """SGLang's own hybrid pool knows one full and one window shape."""
    groups = spec.geometry.row_groups
    windows = [group for group in groups if group.window is not None]
    if len(windows) > 1 or len(groups) - len(windows) > 1:
        raise NotYetSupportedError(f"{spec.backend}: SGLang's hybrid pool has at most two groups")


def _one_row_shape(spec: RunSpec) -> None:
    if len({group.row_bytes for group in spec.geometry.row_groups}) > 1:
        raise NotYetSupportedError("stock-hybrid-off: one pool needs one row shape in all layers")


def _two_groups(spec: RunSpec) -> None:
    _at_most_one_window(spec)
    if len(spec.geometry.groups) != 2:
        raise NotYetSupportedError("unified: SGLang refuses models of one group")


def _load_jenga(spec: RunSpec) -> None:
    """Hook this process as a Jenga server's, with the policies that the run asks for."""
    if spec.jenga_policies:
        os.environ[JENGA_POLICY_VARIABLE] = ",".join(
            f"{name}={value}" for name, value in spec.jenga_policies.items()
        )
    from sglang.srt.plugins import load_plugins

    from jenga_sglang.activation import activate
    from jenga_sglang.adapter import streams

    load_plugins()
    activate()
    # What steps and copies take is simulated, so it is what is measured.
    streams.time = DEVICE_WORK  # type: ignore[assignment]
    if spec.host_bytes:
        host_copies.install()


def _jenga_arguments(spec: RunSpec) -> dict[str, Any]:
    from jenga_sglang.core.cut.planner import default_page_size
    from jenga_sglang.flags import apply_flag

    # The dummy model's rows are smaller than those by which a server chooses.
    page_size = spec.page_size_tokens or default_page_size(_specs(spec.geometry))
    values: dict[str, Any] = {"memory_backend": "jenga", "page_size": page_size}
    values["disable_hybrid_swa_memory"] = not spec.window_pool
    if spec.host_bytes:
        values |= {
            "enable_hierarchical_cache": True,
            "hicache_ratio": spec.host_bytes / spec.kv_bytes,
            "hicache_write_policy": spec.write_policy,
        }
    apply_flag(values)
    return values


def _specs(geometry: Geometry) -> list[Any]:
    """The layer groups of the real model."""
    from jenga_sglang.core.cut.geometry import LayerGroupSpec
    from jenga_sglang.core.dependency import ChunkedLocal, Full, LastState, SlidingWindow

    specs = []
    for index, group in enumerate(geometry.groups):
        window = group.window or 1
        kinds = {
            "full": Full(),
            "swa": SlidingWindow(window),
            "chunked": ChunkedLocal(window),
            "mamba": LastState(),
        }
        layers = tuple(n for n, of in enumerate(geometry.order) if of == index)
        row = group.row_bytes // 2
        states = (group.state_bytes,) if group.state_bytes else ()
        specs.append(LayerGroupSpec(group.kind, layers, kinds[group.kind], row, row, states))
    return specs


def _jenga_pool_bytes(scheduler: Any) -> PoolBytes:
    manager = scheduler.token_to_kv_pool_allocator.manager
    books = manager.memory.large
    cuts = manager.geometry.groups
    held = sum(n * cut.small_page_bytes for n, cut in zip(books.num_held, cuts, strict=True))
    pinned = sum(n * cut.small_page_bytes for n, cut in zip(books.num_used, cuts, strict=True))
    return PoolBytes(held=held, pinned=pinned)


def _jenga_host_bytes(scheduler: Any) -> int:
    manager = scheduler.token_to_kv_pool_allocator.manager
    below = getattr(manager, "host_geometry", None)
    return below.pool_bytes if below is not None else 0


def _jenga_learnt(scheduler: Any) -> dict[str, Any]:
    prices = scheduler.token_to_kv_pool_allocator.manager.prices
    return {"measured_step_tokens": prices.measured_step_tokens()}


def _count_state_copies(batch: Any) -> None:
    """Note the copies of states that the attention backend would make before and in this step."""
    for req in batch.reqs:
        running = req.lock.receipt
        copies = [*running.take_starts(), *(copy for _, copy in running.take_saves())]
        cuts = batch.token_to_kv_pool_allocator.manager.geometry.groups
        for copy in copies:
            DEVICE_WORK.moved_bytes += len(copy.target) * cuts[copy.group].small_page_bytes


def _install_unified(spec: RunSpec) -> None:
    unified_on_cpu.install()
    hicache_on_cpu.install(spec)


BACKENDS: Mapping[str, Backend] = {
    "stock": Backend(
        check=_at_most_one_window,
        server_args=lambda spec: _ratio_arguments(spec) | hicache_on_cpu.arguments(spec),
        after_publish=hicache_on_cpu.install,
        host_bytes=hicache_on_cpu.host_bytes,
    ),
    "stock-hybrid-off": Backend(
        check=_one_row_shape,
        server_args=lambda spec: {
            "disable_hybrid_swa_memory": True,
            **hicache_on_cpu.arguments(spec),
        },
        after_publish=hicache_on_cpu.install,
        host_bytes=hicache_on_cpu.host_bytes,
    ),
    "unified": Backend(
        check=_two_groups,
        server_args=lambda spec: {
            "enable_unified_memory": True,
            "attention_backend": unified_on_cpu.ACCEPTED_ATTENTION_BACKEND,
            # Of a draft model too, where there is one.
            "speculative_draft_attention_backend": unified_on_cpu.ACCEPTED_ATTENTION_BACKEND
            if spec.drafting
            else None,
            **hicache_on_cpu.arguments(spec),
        },
        after_publish=_install_unified,
        host_bytes=hicache_on_cpu.host_bytes,
    ),
    "jenga": Backend(
        server_args=_jenga_arguments,
        before_args=_load_jenga,
        pool_bytes=_jenga_pool_bytes,
        before_forward=_count_state_copies,
        host_bytes=_jenga_host_bytes,
        learnt=_jenga_learnt,
    ),
}
