"""The names of metrics: those of the dashboard and the documentation are those published."""

import json
import re
from pathlib import Path
from typing import Any

from core_builders import begin, make_manager, serve, tokens
from prometheus_client import REGISTRY, generate_latest

from jenga_sglang.adapter.metrics import CAUSES, JengaMetrics
from jenga_sglang.core.dependency import Full, SlidingWindow
from jenga_sglang.core.stats import pool_stats

DOCS = Path(__file__).parents[2] / "docs"
NAME = re.compile(r"sglang:jenga_\w+")


def published() -> tuple[dict[str, float], dict[str, Any]]:
    """Every sample of a small pool after three publications, by name and labels, and what the pool
    says of itself."""
    manager = make_manager(Full(), SlidingWindow(2), num_large=8)
    metrics = JengaMetrics({"tp_rank": 0})
    try:
        for history in (tokens(1, 2, 3), tokens(4, 5, 6)):
            serve(manager, history)
            manager.counters.prompt_tokens += len(history)
            metrics.publish(manager)
        begin(manager, tokens(7, 8))
        metrics.publish(manager)
        text = generate_latest(REGISTRY).decode()
    finally:
        for collector in {
            c for n, c in REGISTRY._names_to_collectors.items() if n.startswith("sglang:jenga_")
        }:
            REGISTRY.unregister(collector)
    samples = re.findall(r"^(sglang:jenga_\S+?)(\{.*\})? (\S+)$", text, re.MULTILINE)
    return {name + labels: float(value) for name, labels, value in samples}, pool_stats(manager)


def test_the_dashboard_and_the_documentation_name_what_is_published() -> None:
    names = {re.sub(r"\{.*", "", key) for key in published()[0] if "_created" not in key}
    assert set(NAME.findall((DOCS / "metrics.md").read_text())) == names
    dashboard = json.dumps(json.loads((DOCS / "grafana.json").read_text()))
    used = set(NAME.findall(dashboard))
    assert used and used <= names


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
