"""The README's figures of host work are those of the committed run, and its target was met."""

import json
from pathlib import Path

from benchmarks.host.__main__ import RESULTS, table

README = Path(__file__).parents[2] / "benchmarks" / "host" / "README.md"
TARGET_US = 50


def test_the_readme_shows_the_committed_run() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert "\n".join(table(rows)) in README.read_text()


def test_counting_and_planning_a_group_met_the_target() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    counts = {name.removeprefix("count, "): row for name, row in rows.items() if "count" in name}
    assert counts
    for where, row in counts.items():
        assert row["now"] + rows[f"plan, {where}"]["now"] <= TARGET_US, where
