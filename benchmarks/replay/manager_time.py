"""Measures the host CPU time that a scheduler spends inside the memory manager.

The manager is: the prefix cache, the KV allocator, the prefill budget that the allocator hands
out, and `alloc_for_extend` / `alloc_for_decode`. Their public entry points are wrapped; a wrapped
call inside another one adds nothing, so no time counts twice.
"""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_CALIBRATION_CALLS = 2001


class ManagerClock:
    """Sums thread CPU time between the outermost entries and exits."""

    def __init__(self) -> None:
        self.total_ns = 0
        self.calls = 0
        self._inside = False
        self._overhead_ns = self._calibrate()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed unless it is called from a timed function."""
        clock = time.thread_time_ns

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            begin = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.total_ns += clock() - begin
                self.calls += 1
                self._inside = False

        return timed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time nothing inside: for reads and checks that a server would not make."""
        inside, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = inside

    @property
    def manager_us(self) -> float:
        """Microseconds so far, without what the timing itself costs."""
        return max(0, self.total_ns - self.calls * self._overhead_ns) / 1e3

    def _calibrate(self) -> int:
        """Return the median time, in ns, that an empty timed call reports."""
        empty = self.wrap(lambda: None)
        samples = []
        for _ in range(_CALIBRATION_CALLS):
            before = self.total_ns
            empty()
            samples.append(self.total_ns - before)
        self.total_ns = self.calls = 0
        return sorted(samples)[len(samples) // 2]


def install(scheduler: Any) -> ManagerClock:
    """Wrap the manager of a built scheduler and return the running clock."""
    from sglang.srt.managers import schedule_batch

    clock = ManagerClock()
    wrap_methods(clock, scheduler.tree_cache)
    wrap_methods(clock, scheduler.token_to_kv_pool_allocator)
    _wrap_budgets(clock, scheduler.token_to_kv_pool_allocator)
    for name in ("alloc_for_extend", "alloc_for_decode"):
        setattr(schedule_batch, name, clock.wrap(getattr(schedule_batch, name)))
    return clock


def wrap_methods(clock: ManagerClock, target: Any) -> None:
    """Replace every public method of one object by a timed one, on the object itself."""
    for name, member in inspect.getmembers(type(target), inspect.isfunction):
        if not name.startswith("_") and not _is_static(type(target), name):
            setattr(target, name, clock.wrap(member.__get__(target)))


def _wrap_budgets(clock: ManagerClock, allocator: Any) -> None:
    """Time the methods and properties of every prefill budget that the allocator creates."""
    create = allocator.create_prefill_budget
    timed_classes: dict[type, type] = {}

    def create_prefill_budget(*args: Any, **kwargs: Any) -> Any:
        budget = create(*args, **kwargs)
        cls = type(budget)
        if cls not in timed_classes:
            timed_classes[cls] = _timed_subclass(clock, cls)
        budget.__class__ = timed_classes[cls]
        return budget

    allocator.create_prefill_budget = create_prefill_budget


def _timed_subclass(clock: ManagerClock, cls: type) -> type:
    # No slots of its own, so that an instance of `cls` can become one of the subclass.
    members: dict[str, Any] = {"__slots__": ()}
    for name in dir(cls):
        if name.startswith("_") or _is_static(cls, name):
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property) and member.fget is not None:
            members[name] = property(clock.wrap(member.fget), member.fset)
        elif inspect.isfunction(member):
            members[name] = clock.wrap(member)
    return type(cls.__name__, (cls,), members)


def _is_static(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name), (staticmethod, classmethod))
