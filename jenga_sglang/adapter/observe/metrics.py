"""`sglang:jenga_*`: the pool's numbers for Prometheus, beside the names that SGLang has already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from jenga_sglang.core.manager import Manager
from jenga_sglang.core.stats import pool_stats, used_share

POOL_GAUGES = {
    "pool_bytes": "Bytes of the pool.",
    "free_bytes": "Bytes in large pages that no group owns.",
    "free_large_pages": "Large pages that no group owns.",
    "longest_kept_out_passes": "Passes in a row that a request which fits was kept out, at most.",
}
GROUP_GAUGES = {
    "used_bytes": "Bytes that running requests need.",
    "cached_bytes": "Bytes that only the prefix cache holds.",
    "free_bytes": "Free bytes in large pages of the group: only the group can use them.",
    "waste_bytes": "Padding and unwritten token slots in used and cached pages.",
    "draft_bytes": "Room for drafts in used pages.",
    "large_pages": "Large pages that the group owns.",
}
POOL_COUNTERS = {
    "refused_reservations": "Reservations that did not fit, whatever was evicted.",
    "prompt_tokens": "Tokens of prompts computed, again after a retraction.",
    "hit_tokens": "Tokens of prompts that the prefix cache spared.",
    "kept_out_passes": "Passes that kept out a request which fits, for cached prefixes' sake.",
    "predicted_tokens": "Tokens of hits for whose sake a request was kept out.",
    "missed_tokens": "Tokens of those hits that did not come true.",
}
LOST = "Tokens that the prefix cache knew and could not give, because the group held too little."
EVICTED = "Pages of tokens evicted, for want of room or with an evicted page they depended on."
CAUSES = {"room": "evicted_pages", "out_of_reach": "cascaded_pages"}


class JengaMetrics:
    """The metrics of one scheduler. Must be made after SGLang has set up Prometheus's directory."""

    def __init__(self, labels: Mapping[str, Any]) -> None:
        from prometheus_client import Counter, Gauge

        self._labels = dict(labels)
        names = list(labels)

        def gauge(name: str, text: str, *more: str) -> Any:
            return Gauge(
                f"sglang:jenga_{name}", text, [*names, *more], multiprocess_mode="mostrecent"
            )

        def counter(name: str, text: str, *more: str) -> Any:
            return Counter(f"sglang:jenga_{name}_total", text, [*names, *more])

        # Of the pool as a whole: `pool_…` where a group has the same name.
        self._pool = {
            key: gauge(key if key not in GROUP_GAUGES else f"pool_{key}", text)
            for key, text in POOL_GAUGES.items()
        }
        self._group = {key: gauge(key, text, "group") for key, text in GROUP_GAUGES.items()}
        self._counters = {key: counter(key, text) for key, text in POOL_COUNTERS.items()}
        self._lost = counter("lost_hit_tokens", LOST, "group")
        self._evicted = counter("evicted_pages", EVICTED, "group", "cause")
        self._counted: dict[tuple[str, ...], int] = {}

    def publish(self, manager: Manager) -> None:
        """Set every gauge, and count up every counter to what the pool has counted."""
        stats = pool_stats(manager)
        for key, gauge in self._pool.items():
            gauge.labels(**self._labels).set(stats[key])
        for key, counter in self._counters.items():
            self._count(counter, stats[key], key)
        for group in stats["groups"]:
            name = group["name"]
            for key, gauge in self._group.items():
                gauge.labels(**self._labels, group=name).set(group[key])
            self._count(self._lost, group["lost_hit_tokens"], "lost", group=name)
            for cause, key in CAUSES.items():
                self._count(self._evicted, group[key], "evicted", group=name, cause=cause)

    def _count(self, counter: Any, total: int, key: str, **labels: str) -> None:
        known = (key, *labels.values())
        counter.labels(**self._labels, **labels).inc(total - self._counted.get(known, 0))
        self._counted[known] = total


@dataclasses.dataclass
class JengaPoolStats(PoolStats):
    """SGLang's numbers of the pool, which publish Jenga's whenever they are published."""

    manager: Manager | None = None
    metrics: JengaMetrics | None = None

    def update_scheduler_stats(self, stats: Any) -> None:
        super().update_scheduler_stats(stats)
        if self.metrics is not None and self.manager is not None:
            self.metrics.publish(self.manager)


def begin(scheduler: Any) -> None:
    """Give the scheduler's prefix cache its metrics, with the labels of the scheduler's own: a
    series of the pool and `sglang:token_usage` of one rank agree in every label they share.

    Does nothing without ``--enable-metrics``.
    """
    if scheduler.metrics_collector is not None:
        scheduler.tree_cache.metrics = JengaMetrics(scheduler.metrics_collector.labels)


def with_metrics(stats: PoolStats, cache: Any) -> JengaPoolStats:
    """``stats`` with token usage as a share of bytes, and with the cache's metrics."""
    fields = {f.name: getattr(stats, f.name) for f in dataclasses.fields(PoolStats)}
    fields["full_token_usage"] = used_share(cache.manager)
    return JengaPoolStats(**fields, manager=cache.manager, metrics=cache.metrics)
