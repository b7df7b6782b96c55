"""Host CPU time of operations, as samples per unit and as median with spread."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_CALIBRATION_CALLS = 10_000


@dataclass
class Samples:
    """Microseconds per unit of each operation, one entry a round, and the units of that round."""

    us: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, list[int]] = field(default_factory=dict)
    _clock_ns: float = field(default_factory=lambda: _clock_cost_ns())

    @contextmanager
    def timed(self, operation: str, units: Callable[[], int]) -> Iterator[None]:
        """Time the block, by this thread's CPU clock: what other programs do to it is left out.

        ``units`` says afterwards how many requests or pages it was for; nothing is noted for 0.
        """
        begin = time.thread_time_ns()
        yield
        spent_us = (time.thread_time_ns() - begin - self._clock_ns) / 1e3
        if count := units():
            self.us.setdefault(operation, []).append(max(0.0, spent_us) / count)
            self.units.setdefault(operation, []).append(count)

    def clear(self) -> None:
        """Forget what was measured so far."""
        self.us.clear()
        self.units.clear()

    def summary(self) -> dict[str, dict[str, float]]:
        """Per operation: median, 10th and 90th percentile in µs per unit, rounds, mean units."""
        return {
            operation: {
                **_spread(values),
                "rounds": len(values),
                "units": statistics.mean(self.units[operation]),
            }
            for operation, values in self.us.items()
        }


def _spread(values: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10) if len(values) > 1 else values * 9
    return {
        "median_us": statistics.median(values),
        "p10_us": tenths[0],
        "p90_us": tenths[-1],
        "max_us": max(values),
    }


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running into a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _clock_cost_ns() -> float:
    samples = []
    for _ in range(_CALIBRATION_CALLS):
        begin = time.thread_time_ns()
        samples.append(time.thread_time_ns() - begin)
    return statistics.median(samples)
