"""The router's benchmark: its conversations, and figures that are those of its results."""

import json
from itertools import pairwise
from pathlib import Path

from benchmarks.router.report import table
from benchmarks.router.trace import Conversations

FOLDER = Path(__file__).parents[2] / "benchmarks" / "router"


def test_conversations_grow_by_a_turn_and_share_what_the_system_says() -> None:
    shape = Conversations(systems=2, per_system=3, turns=4, system_chars=40, turn_chars=10)
    rounds = shape.rounds(seed=1)
    assert [len(prompts) for prompts in rounds] == [6] * 4
    assert [{len(prompt) for prompt in prompts} for prompts in rounds] == [{50}, {60}, {70}, {80}]
    assert len({prompt[:40] for prompts in rounds for prompt in prompts}) == 2
    for before, after in pairwise(rounds):
        assert {prompt[:-10] for prompt in after} == set(before)
        assert [prompt[:-10] for prompt in after] != before  # each round has an order of its own


def test_the_table_is_that_of_the_results() -> None:
    results = json.loads((FOLDER / "results" / "full.json").read_text())
    assert table(results["runs"]) in (FOLDER / "README.md").read_text()


def test_medians_and_ranges_are_of_the_repeats() -> None:
    rates = {"round_robin": (0.5, 0.25, 0.75), "cache_aware": (0.8, 0.9, 0.8)}
    runs = [
        {"memory": "stock", "policy": policy, "repeat": repeat, "hit_rate": rate}
        for policy, all_rates in rates.items()
        for repeat, rate in enumerate(all_rates)
    ]
    assert table(runs).splitlines()[2:] == [
        "| stock | 0.500 (0.250 to 0.750) | 0.800 (0.800 to 0.900) |"
    ]
