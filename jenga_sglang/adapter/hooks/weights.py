"""When a model gets other weights."""

from __future__ import annotations

from typing import Any

from jenga_sglang.adapter.cache.tiered_cache import JengaTieredCache
from jenga_sglang.hook import AFTER, hook

UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"


@hook(
    f"{UPDATER}.record_weight_version_after_update",
    ("self", "weight_version"),
    AFTER,
    until="SGLang tells the prefix cache",
)
def _leave_storage(result: None, updater: Any, weight_version: str | None) -> None:
    """What storage keeps is of the old weights, under names that do not say so."""
    cache = updater.scheduler.tree_cache
    if isinstance(cache, JengaTieredCache):
        cache.weights_changed()
