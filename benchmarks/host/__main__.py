"""Compare this tree's host work of a step with that of another commit: `python -m benchmarks.host`.

Processes of the two take turns, so that a busy machine is busy for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "decode.json"
# Counts were torch operators, and views of the tables were made anew each step.
BEFORE = "54c4631"
ROUNDS = 5
WHAT = {"count": "count entries", "plan": "plan, FlashInfer's own part aside", "views": "views"}


def unpack(commit: str, folder: Path) -> None:
    """Put the package as it was at a commit into ``folder``."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "flashinfer_ext"],
        check=True,
        capture_output=True,
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def measure(tree: Path) -> dict[str, float]:
    """Microseconds by name, of the package in ``tree``."""
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "measure.py")],
        check=True,
        capture_output=True,
        text=True,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def compare(before: Path, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the two take turns, and the ratio of each round."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"before": [], "now": []})
    for _ in range(rounds):
        for side, tree in (("before", before), ("now", ROOT)):
            for name, us in measure(tree).items():
                samples[name][side].append(us)
    return {
        name: {side: round(statistics.median(us), 1) for side, us in sides.items()}
        | {"ratio": round(statistics.median(map(_ratio, sides["now"], sides["before"])), 2)}
        for name, sides in samples.items()
    }


def _ratio(now: float, before: float) -> float:
    return now / before


def table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of the README's table."""
    lines = ["| µs per group and step | | before | now | ratio |", "|---|---|--:|--:|--:|"]
    for name, row in rows.items():
        part, group, requests = name.split(", ")
        where = f"{group}, {requests} requests"
        numbers = f"{row['before']:g} | {row['now']:g} | {row['ratio']:g}"
        lines.append(f"| {WHAT[part]} | {where} | {numbers} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--against", default=BEFORE, help="a commit; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.against, Path(folder))
        rows = compare(Path(folder), options.rounds)
    content = {"against": options.against, "rounds": options.rounds, "rows": rows}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
