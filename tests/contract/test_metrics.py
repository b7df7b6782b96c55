"""The names of metrics: those of the dashboard and the documentation are those published."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapter_builders import make_cache
from core_builders import begin, make_manager, make_tiered, serve, tokens
from prometheus_client import REGISTRY, generate_latest
from sglang.srt.observability import metrics_collector
from sglang.srt.observability.metrics_collector import SchedulerMetricsCollector

from jenga_sglang.adapter.hooks import observe as hooks
from jenga_sglang.adapter.observe.metrics import CAUSES, JengaMetrics
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.stats import pool_stats
from jenga_sglang.core.tier_stats import host_stats

DOCS = Path(__file__).parents[2] / "docs"
STORED = {"written_bytes": 4, "read_bytes": 3, "not_written_pages": 2, "not_read_pages": 1}
STORAGE = {"hit_tokens": 9, "queued_pages": 5, "groups": [STORED | {"name": "group0"}]}
NAME = re.compile(r"sglang:jenga_\w+")


def published() -> tuple[dict[str, float], dict[str, Any]]:
    """Every sample of a small pool after three publications, by name and labels, and what the pool
    says of itself."""
    manager = make_tiered(Full(), SlidingWindow(2), num_large=8, num_host=3)
    metrics = JengaMetrics({"tp_rank": 0}, has_host=True)
    try:
        for history in (tokens(1, 2, 3), tokens(4, 5, 6)):
            serve(manager, history)
            manager.counters.prompt_tokens += len(history)
            metrics.publish(manager, STORAGE)
        begin(manager, tokens(7, 8))
        metrics.publish(manager, STORAGE)
        text = generate_latest(REGISTRY).decode()
    finally:
        forget_collectors()
    samples = re.findall(r"^(sglang:jenga_\S+?)(\{.*\})? (\S+)$", text, re.MULTILINE)
    stats = pool_stats(manager) | {"host": host_stats(manager)}
    return {name + labels: float(value) for name, labels, value in samples}, stats


def forget_collectors() -> None:
    named = REGISTRY._names_to_collectors.items()
    for collector in {found for name, found in named if name.startswith("sglang:")}:
        REGISTRY.unregister(collector)


def test_the_dashboard_and_the_documentation_name_what_is_published() -> None:
    names = {re.sub(r"\{.*", "", key) for key in published()[0] if "_created" not in key}
    assert set(NAME.findall((DOCS / "metrics.md").read_text())) == names
    dashboard = json.dumps(json.loads((DOCS / "grafana.json").read_text()))
    used = set(NAME.findall(dashboard))
    assert used and used <= names
    # One pool, or one rank's of several: without the label the expression matches as well.
    panels = json.loads(dashboard)["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(e.count("{") == e.count('dp_rank=~"$dp_rank"') for e in asked)


def test_counters_count_on_from_the_last_publication() -> None:
    """Eight large pages; each history takes six of them or four."""
    samples, stats = published()
    assert samples['sglang:jenga_prompt_tokens_total{tp_rank="0"}'] == 6
    for group in stats["groups"]:
        assert group["evicted_pages"] + group["cascaded_pages"] > 0
        labels = f'group="{group["name"]}",tp_rank="0"'
        for cause, counted in CAUSES.items():
            key = f'sglang:jenga_evicted_pages_total{{cause="{cause}",{labels}}}'
            assert samples[key] == group[counted]
        assert samples[f"sglang:jenga_used_bytes{{{labels}}}"] == group["used_bytes"] > 0


def test_bytes_to_the_host_are_counted_by_group() -> None:
    """Three large pages of host: not all that leaves the pool has room there."""
    samples, stats = published()
    host = stats["host"]
    assert host["written_bytes"] > 0
    for group in host["groups"]:
        labels = f'{{group="{group["name"]}",tp_rank="0"}}'
        written = samples[f"sglang:jenga_host_written_bytes_total{labels}"]
        assert written == group["written_bytes"]
        assert samples[f"sglang:jenga_host_cached_bytes{labels}"] == group["cached_bytes"]
    cached = sum(group["cached_bytes"] + group["free_bytes"] for group in host["groups"])
    assert cached + host["free_bytes"] + host["unusable_bytes"] == host["host_bytes"]


def test_traffic_with_storage_is_counted_by_group() -> None:
    samples, _ = published()
    assert samples['sglang:jenga_storage_hit_tokens_total{tp_rank="0"}'] == 9
    assert samples['sglang:jenga_storage_queued_pages{tp_rank="0"}'] == 5
    labels = '{group="group0",tp_rank="0"}'
    for key, value in STORED.items():
        assert samples[f"sglang:jenga_storage_{key}_total{labels}"] == value


@pytest.fixture
def stock_collector(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's own collector as the scheduler of one rank of several makes it."""
    ranks = {"tp_rank": 1, "pp_rank": 2, "moe_ep_rank": 3, "dp_rank": 4}
    parallel = SimpleNamespace(**ranks, attn_tp_rank=0, attn_cp_rank=0)
    observability = SimpleNamespace(
        enable_metrics=True,
        enable_metrics_for_all_schedulers=False,
        kv_events_config=None,
        extra_metric_labels={"team": "blue"},
        stat_loggers=None,
    )
    disagg = SimpleNamespace(enable_pd_role_switch=False, disaggregation_mode="null")
    schedule = SimpleNamespace(
        prefill_delayer_max_delay_passes=30,
        prefill_delayer_forward_passes_buckets=None,
        prefill_delayer_wait_seconds_buckets=None,
    )
    serving = SimpleNamespace(served_model_name="model", enable_streaming_session=False)
    parts = {"parallel": parallel, "observability": observability, "disagg": disagg}
    for name, part in (parts | {"serving": serving, "schedule": schedule}).items():
        monkeypatch.setattr(metrics_collector, f"get_{name}", lambda part=part: part)
    monkeypatch.setattr(metrics_collector, "resolve_collector_class", lambda role, default: default)
    monkeypatch.setattr(
        metrics_collector, "exports_expert_balancedness_to_prometheus", lambda: False
    )
    yield SchedulerMetricsCollector.init_new(
        server_args=SimpleNamespace(),
        enable_priority_scheduling=True,
        enable_lora=False,
        enable_hierarchical_cache=False,
    ).collector
    forget_collectors()


def test_a_rank_has_the_labels_of_sglangs_own_metrics(stock_collector: Any) -> None:
    manager = make_manager(Full(), num_large=8)
    cache = make_cache(manager)
    hooks._begin_metrics(None, SimpleNamespace(tree_cache=cache, metrics_collector=stock_collector))
    assert cache.metrics is not None
    cache.metrics.publish(manager, None)
    stock_collector.token_usage.labels(**stock_collector.labels).set(0.5)
    text = generate_latest(REGISTRY).decode()
    labels = dict(re.findall(r"^sglang:(token_usage|jenga_pool_bytes)\{(.*)\}", text, re.MULTILINE))
    assert labels["jenga_pool_bytes"] == labels["token_usage"]
    assert 'dp_rank="4"' in labels["token_usage"] and 'team="blue"' in labels["token_usage"]


def test_without_metrics_none_are_made() -> None:
    cache = make_cache(make_manager(Full(), num_large=8))
    hooks._begin_metrics(None, SimpleNamespace(tree_cache=cache, metrics_collector=None))
    assert cache.metrics is None


def test_a_start_leaves_metrics_to_be_made_where_they_are_read(demo_model: Path) -> None:
    """Prometheus' client reads where to write when it is imported, and SGLang says so later."""
    program = (
        "import sys\n"
        "from sglang.srt.plugins import load_plugins\n"
        "load_plugins()\n"
        "from sglang.srt.server_args import prepare_server_args\n"
        "prepare_server_args(['--model-path', sys.argv[1], '--memory-backend', 'jenga'])\n"
        "print('prometheus_client' in sys.modules)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(demo_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
