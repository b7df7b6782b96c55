"""How long a storage backend that does not answer is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """So many ``seconds`` from now on; 0 is without end."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds if seconds else None

    @property
    def left(self) -> float | None:
        """Seconds, or None where there is no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def call(self, function: Callable[[], T]) -> T | None:
        """What ``function`` returns, or None where it does not in time: it goes on by itself."""
        answer: list[T] = []
        thread = threading.Thread(target=lambda: answer.append(function()), daemon=True)
        thread.start()
        thread.join(self.left)
        return answer[0] if answer else None
