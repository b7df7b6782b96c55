"""Random lengths and times, all drawn from one generator."""

from dataclasses import replace

import numpy as np

from benchmarks.replay.trace import Request


class Draw:
    """Draws from one seeded generator; every method advances it."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def length(self, median: float, sigma: float, low: int, high: int) -> int:
        """Return a log-normal length clipped to `[low, high]` tokens."""
        value = self._rng.lognormal(np.log(median), sigma)
        return int(np.clip(value, low, high))

    def uniform(self, low: int, high: int) -> int:
        """Return an integer of `[low, high]`."""
        return int(self._rng.integers(low, high + 1))

    def seconds(self, mean: float) -> float:
        """Return an exponential time."""
        return float(self._rng.exponential(mean))

    def chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def geometric(self, mean: float) -> int:
        """Return a count of at least one."""
        return int(self._rng.geometric(1 / mean))

    def zipf_index(self, count: int, exponent: float = 1.0) -> int:
        """Return an index below `count`; index i has weight (i + 1) ** -exponent."""
        weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
        return int(self._rng.choice(count, p=weights / weights.sum()))


def by_arrival(requests: list[Request]) -> list[Request]:
    """Return requests in order of arrival; a turn stays behind the turn that it waits for."""
    return sorted(requests, key=lambda request: request.arrival)


def shift(requests: list[Request], prefix: str, seconds: float) -> list[Request]:
    """Return requests that arrive `seconds` later, with ids and segments of their own."""
    return [
        replace(
            request,
            id=prefix + request.id,
            arrival=request.arrival + seconds,
            prompt=tuple((prefix + segment, length) for segment, length in request.prompt),
            after=None if request.after is None else prefix + request.after,
        )
        for request in requests
    ]
