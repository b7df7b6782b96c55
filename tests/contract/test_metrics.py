"""The names of metrics: those of the dashboard and the documentation are those published."""

import json
import re
from pathlib import Path

from core_builders import begin, make_manager, serve, tokens
from prometheus_client import REGISTRY, generate_latest

from jenga_sglang.adapter.metrics import JengaMetrics
from jenga_sglang.core.dependency import Full, SlidingWindow

DOCS = Path(__file__).parents[2] / "docs"
NAME = re.compile(r"sglang:jenga_\w+")


def published() -> dict[str, float]:
    """Every sample of a small pool after two publications, by name and labels."""
    manager = make_manager(Full(), SlidingWindow(2), num_large=8)
    metrics = JengaMetrics({"tp_rank": 0})
    try:
        serve(manager, tokens(1, 2, 3))
        metrics.publish(manager)
        begin(manager, tokens(4, 5, 6))
        metrics.publish(manager)
        text = generate_latest(REGISTRY).decode()
    finally:
        for collector in {
            c for n, c in REGISTRY._names_to_collectors.items() if n.startswith("sglang:jenga_")
        }:
            REGISTRY.unregister(collector)
    samples = re.findall(r"^(sglang:jenga_\S+?)(\{.*\})? (\S+)$", text, re.MULTILINE)
    return {name + labels: float(value) for name, labels, value in samples}


def test_the_dashboard_and_the_documentation_name_what_is_published() -> None:
    names = {re.sub(r"\{.*", "", key) for key in published() if "_created" not in key}
    assert set(NAME.findall((DOCS / "metrics.md").read_text())) == names
    dashboard = json.dumps(json.loads((DOCS / "grafana.json").read_text()))
    used = set(NAME.findall(dashboard))
    assert used and used <= names


def test_counters_count_on_from_the_last_publication() -> None:
    """Of eight large pages three served tokens took two and two; three more took the rest."""
    samples = published()
    group = '{group="group0",tp_rank="0"}'
    assert samples[f"sglang:jenga_used_bytes{group}"] == 3 * 8
    evicted = {k: v for k, v in samples.items() if "evicted_pages_total" in k}
    assert len(evicted) == 4 and sum(evicted.values()) > 0
    assert all(value == int(value) for value in evicted.values())
