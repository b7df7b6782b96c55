"""When requests reach the server: open-loop arrivals and closed-loop turns."""

import heapq
from collections import defaultdict
from collections.abc import Iterable

from benchmarks.replay.trace import Request


class Arrivals:
    """Requests that are not released yet. A turn waits for the turn before it, plus its gap."""

    def __init__(self, requests: Iterable[Request]) -> None:
        # (release time in seconds, position in the trace, request): a heap.
        self._timed: list[tuple[float, int, Request]] = []
        self._waiting: dict[str, list[tuple[int, Request]]] = defaultdict(list)
        for position, request in enumerate(requests):
            if request.after is None:
                heapq.heappush(self._timed, (request.arrival, position, request))
            else:
                self._waiting[request.after].append((position, request))

    def release(self, now: float) -> list[tuple[float, Request]]:
        """Remove and return what is due at `now`, as `(release time, request)` in time order."""
        due = []
        while self._timed and self._timed[0][0] <= now:
            release_time, _, request = heapq.heappop(self._timed)
            due.append((release_time, request))
        return due

    def finished(self, request_id: str, now: float) -> None:
        """Give the turns that waited for a request their release time."""
        for position, request in self._waiting.pop(request_id, ()):
            release_time = max(request.arrival, now + request.gap)
            heapq.heappush(self._timed, (release_time, position, request))

    def next_time(self) -> float | None:
        """Return when the next request is due, None when none is timed."""
        return self._timed[0][0] if self._timed else None

    def __bool__(self) -> bool:
        return bool(self._timed or self._waiting)
