"""How many bytes of the budget a backend holds."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PoolBytes:
    """Bytes that are not free. `held` = `pinned` by running requests + kept by the tree alone."""

    held: int
    pinned: int


def token_pool_bytes(scheduler: Any) -> PoolBytes:
    """Read SGLang's own pool statistics and price each token, and each state, with its layers."""
    stats = scheduler.pool_stats_observer.get_pool_stats()
    full_bytes, swa_bytes = _bytes_per_token(scheduler)
    pinned = stats.full_num_used * full_bytes
    cached = stats.full_evictable_size * full_bytes
    if stats.is_hybrid_swa:
        pinned += stats.swa_num_used * swa_bytes
        cached += stats.swa_evictable_size * swa_bytes
    if stats.is_hybrid_ssm:
        state_bytes = _bytes_per_state(scheduler)
        pinned += stats.mamba_num_used * state_bytes
        cached += stats.mamba_evictable_size * state_bytes
    return PoolBytes(held=pinned + cached, pinned=pinned)


def _bytes_per_token(scheduler: Any) -> tuple[int, int]:
    """Return the bytes of one token in the full pool and in the window pool."""
    layers = list(scheduler.tp_worker.model_runner.model.layers)
    if scheduler.draft_worker is not None:
        for runner in scheduler.draft_worker._draft_model_runners():
            layers += runner.model.layers
    if not scheduler.is_hybrid_swa:
        return sum(map(_row_bytes, layers)), 0
    windowed = [layer for layer in layers if layer.sliding_window_size > 0 or layer.use_irope]
    full = [layer for layer in layers if layer not in windowed]
    return sum(map(_row_bytes, full)), sum(map(_row_bytes, windowed))


def _bytes_per_state(scheduler: Any) -> int:
    """Return the bytes of one request's states."""
    config = scheduler.tp_worker.model_runner.model_config.hf_config
    return int(config.mamba2_cache_params.mamba_cache_per_req)


def _row_bytes(layer: Any) -> int:
    """K and V of one token, two bytes an element."""
    return 2 * 2 * int(layer.tp_k_head_num) * int(layer.head_dim)
