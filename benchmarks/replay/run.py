"""Replays one trace on one backend in this process."""

import time
from typing import Any

from benchmarks.replay import manager_time
from benchmarks.replay.backends import BACKENDS
from benchmarks.replay.engine import build_scheduler
from benchmarks.replay.final_checks import check_end_state
from benchmarks.replay.loop import ReplayLoop
from benchmarks.replay.prefixes import hit_bound, shared_bytes
from benchmarks.replay.progress import show_progress
from benchmarks.replay.recorder import Recorder
from benchmarks.replay.result import summarise
from benchmarks.replay.spec import RunSpec
from benchmarks.replay.trace import load_trace


def replay(spec: RunSpec) -> dict[str, Any]:
    """Build the scheduler, replay the trace, check the end state and return the figures."""
    requests = load_trace(spec.trace)
    backend = BACKENDS[spec.backend]
    scheduler = build_scheduler(spec)
    manager = manager_time.install(scheduler)
    recorder = Recorder(spec.memory)
    loop = ReplayLoop(
        scheduler,
        requests,
        recorder,
        backend.pool_bytes,
        manager,
        overlap=spec.overlap,
        strict=spec.strict,
        copy_bytes_per_s=spec.copy_bytes_per_s,
        drafting=spec.drafting,
        before_forward=backend.before_forward,
    )
    begin = time.perf_counter()
    with show_progress(f"{spec.backend} {spec.geometry.name}", len(requests)) as progress:
        loop.run(progress)
    wall_seconds = time.perf_counter() - begin
    with manager.paused():
        check_end_state(scheduler, backend.pool_bytes(scheduler))
    figures = summarise(spec, recorder, hit_bound(requests), manager.manager_us, wall_seconds)
    host_bytes = backend.host_bytes(scheduler) * spec.geometry.shrink_factor
    return figures | {
        "host_pool_bytes": host_bytes,
        "shared_bytes": shared_bytes(spec.memory, requests),
        **backend.learnt(scheduler),
    }
