"""What must hold when the last request has finished."""

from typing import Any

from benchmarks.replay.forward import ReplayError
from benchmarks.replay.held import PoolBytes


def check_end_state(scheduler: Any, pool: PoolBytes) -> None:
    """Raise `ReplayError` unless nothing runs, nothing is pinned and SGLang finds no leak."""
    if not scheduler.is_fully_idle():
        raise ReplayError("the trace is over but the scheduler is not idle")
    if pool.pinned != 0:
        raise ReplayError(f"{pool.pinned} bytes are still pinned after the last request")
    stats = scheduler.pool_stats_observer.get_pool_stats()
    leak, messages = scheduler.invariant_checker._check_all_pools(stats)
    if leak:
        raise ReplayError("leak: " + "; ".join(messages))
    if violations := scheduler.token_to_kv_pool_allocator.verify_byte_accounting():
        raise ReplayError("byte accounting: " + "; ".join(violations))
    if hasattr(scheduler.tree_cache, "sanity_check"):
        scheduler.tree_cache.sanity_check()
    # SGLang's own idle checks, which raise on what they find (see `engine.prepare_process`).
    scheduler.on_idle()
