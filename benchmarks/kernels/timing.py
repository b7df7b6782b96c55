"""Times of GPU work without launch overhead, and of host work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds per call over the rounds."""

    median_us: float
    p10_us: float
    p90_us: float

    @staticmethod
    def of(samples_us: list[float]) -> Timing:
        tenths = statistics.quantiles(samples_us, n=10)
        return Timing(statistics.median(samples_us), tenths[0], tenths[-1])


def capture(call: Call, repeats: int) -> torch.cuda.CUDAGraph:
    """`repeats` calls in one graph; the call runs once before, to compile and to allocate."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph


def gpu_times(calls: Mapping[str, Call], rounds: int = 30, repeats: int = 10) -> dict[str, Timing]:
    """Device time of each call. Rounds take turns, so that a drifting clock hits all alike."""
    graphs = {name: capture(call, repeats) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for index in range(rounds + 3):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if index >= 3:
                samples[name].append(start.elapsed_time(end) * 1000 / repeats)
    return {name: Timing.of(values) for name, values in samples.items()}


def host_time(call: Call, rounds: int = 200) -> Timing:
    """Host time of one call; the device is idle before each."""
    samples = []
    for index in range(rounds + 10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if index >= 10:
            samples.append((time.perf_counter() - start) * 1e6)
    return Timing.of(samples)
