"""`sglang:jenga_*`: the pool's numbers for Prometheus, beside the names that SGLang has already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats

from jenga_sglang.core.manager import Manager
from jenga_sglang.core.stats import pool_stats, used_share
from jenga_sglang.core.tier_stats import host_stats

POOL_GAUGES = {
    "pool_bytes": "Bytes of the pool.",
    "free_bytes": "Bytes in large pages that no group owns.",
    "free_large_pages": "Large pages that no group owns.",
    "step_cost_tokens": "Tokens of prompts that running one more request is weighed with.",
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
    "awaited_tokens": "Tokens of prompts that requests waited for another to compute.",
    "kept_out_passes": "Passes that kept out a request which fits, for cached prefixes' sake.",
    "predicted_tokens": "Tokens of hits for whose sake a request was kept out.",
    "missed_tokens": "Tokens of those hits that did not come true.",
}
LOST = "Tokens that the prefix cache knew and could not give, because the group held too little."
EVICTED = "Pages of tokens evicted, for want of room or with an evicted page they depended on."
CAUSES = {"room": "evicted_pages", "out_of_reach": "cascaded_pages"}


HOST_GAUGES = {
    "host_bytes": "Bytes of host memory below the pool.",
    "free_bytes": "Bytes in large pages of the host that no group owns.",
    "copied_bytes_per_second": "Bytes that were copied to the host or back, by time of copying.",
    "prompt_tokens_per_second": "Tokens of prompts that were computed, by time of computing.",
}
HOST_COUNTERS = {
    "hit_tokens": "Tokens of hits that the device alone could not have given.",
    "declined_loads": "Hits of the host that were computed again, for want of room to load them.",
    "not_worth_loads": "Hits of the host that were computed again, for it took less time.",
}
HOST_GROUP_COUNTERS = {
    "written_bytes": "Bytes copied to the host.",
    "loaded_bytes": "Bytes copied back.",
    "not_written_pages": "Pages of tokens worth a place in the host that had no room there.",
}
STORAGE_GROUP_COUNTERS = {
    "written_bytes": "Bytes that storage took.",
    "read_bytes": "Bytes that came from storage, and were what they should be.",
    "not_written_pages": "Pages of tokens that storage did not take, or that had gone by then.",
    "not_read_pages": "Pages of tokens that storage had, and that could not be read.",
}
STORAGE_HITS = "Tokens of hits that the device and the host could not have given."
STORAGE_QUEUED = "Pages of tokens that wait to be stored."
HOST_CACHED = "Bytes that the host holds."
HOST_EVICTED = "Pages of tokens evicted from the host."


class JengaMetrics:
    """The metrics of one scheduler, with those of host memory where it ``has_host``. Must be made
    after SGLang has set up Prometheus's directory."""

    def __init__(self, labels: Mapping[str, Any], *, has_host: bool = False) -> None:
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
        if has_host:
            self._host = {
                key: gauge(f"host_{key.removeprefix('host_')}", text)
                for key, text in HOST_GAUGES.items()
            }
            self._host_counters = {
                key: counter(f"host_{key}", text) for key, text in HOST_COUNTERS.items()
            }
            self._host_group = {
                key: counter(f"host_{key}", text, "group")
                for key, text in HOST_GROUP_COUNTERS.items()
            }
            self._host_cached = gauge("host_cached_bytes", HOST_CACHED, "group")
            self._host_evicted = counter("host_evicted_pages", HOST_EVICTED, "group", "cause")
            self._storage_group = {
                key: counter(f"storage_{key}", text, "group")
                for key, text in STORAGE_GROUP_COUNTERS.items()
            }
            self._storage_hits = counter("storage_hit_tokens", STORAGE_HITS)
            self._storage_queued = gauge("storage_queued_pages", STORAGE_QUEUED)

    def publish(self, manager: Manager, storage: Mapping[str, Any] | None) -> None:
        """Set every gauge, and count up every counter to what the pool has counted, and ``storage``
        below it."""
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
        if (host := host_stats(manager)) is not None:
            self._publish_host(host)
        if storage is not None:
            self._publish_storage(storage)

    def _publish_storage(self, stats: Mapping[str, Any]) -> None:
        self._count(self._storage_hits, stats["hit_tokens"], "storage hits")
        self._storage_queued.labels(**self._labels).set(stats.get("queued_pages", 0))
        for group in stats["groups"]:
            for key, counter in self._storage_group.items():
                self._count(counter, group[key], f"storage {key}", group=group["name"])

    def _publish_host(self, stats: Mapping[str, Any]) -> None:
        for key, gauge in self._host.items():
            gauge.labels(**self._labels).set(stats[key])
        for key, counter in self._host_counters.items():
            self._count(counter, stats[key], f"host {key}")
        for group in stats["groups"]:
            name = group["name"]
            cached = self._host_cached.labels(**self._labels, group=name)
            cached.set(group["cached_bytes"])
            for key, counter in self._host_group.items():
                self._count(counter, group[key], f"host {key}", group=name)
            for cause, key in CAUSES.items():
                evicted = group[key]
                self._count(self._host_evicted, evicted, "host evicted", group=name, cause=cause)

    def _count(self, counter: Any, total: int, key: str, **labels: str) -> None:
        known = (key, *labels.values())
        counter.labels(**self._labels, **labels).inc(total - self._counted.get(known, 0))
        self._counted[known] = total


@dataclasses.dataclass
class JengaPoolStats(PoolStats):
    """SGLang's numbers of the pool, which publish Jenga's whenever they are published."""

    manager: Manager | None = None
    metrics: JengaMetrics | None = None
    storage: Mapping[str, Any] | None = None

    def update_scheduler_stats(self, stats: Any) -> None:
        super().update_scheduler_stats(stats)
        if self.metrics is not None and self.manager is not None:
            self.metrics.publish(self.manager, self.storage)


def begin(scheduler: Any) -> None:
    """Give the scheduler's prefix cache its metrics, with the labels of the scheduler's own: a
    series of the pool and `sglang:token_usage` of one rank agree in every label they share.

    Does nothing without ``--enable-metrics``.
    """
    if scheduler.metrics_collector is not None:
        cache, labels = scheduler.tree_cache, scheduler.metrics_collector.labels
        cache.metrics = JengaMetrics(labels, has_host=host_stats(cache.manager) is not None)


def with_metrics(stats: PoolStats, cache: Any) -> JengaPoolStats:
    """``stats`` with token usage as a share of bytes, and with the cache's metrics."""
    fields = {f.name: getattr(stats, f.name) for f in dataclasses.fields(PoolStats)}
    fields["full_token_usage"] = used_share(cache.manager)
    return JengaPoolStats(
        **fields, manager=cache.manager, metrics=cache.metrics, storage=cache.storage_stats()
    )
