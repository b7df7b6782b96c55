"""Compare routing policies; see the README of this folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.router.report import table
from benchmarks.router.run import compare
from benchmarks.router.trace import Conversations


def main() -> None:
    """`run [--repeats N] [--json out.json]`, or `table out.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--repeats", type=int, default=3)
    run.add_argument("--json", type=Path)
    commands.add_parser("table").add_argument("results", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        results = compare(Conversations(), options.repeats)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    else:
        results = json.loads(options.results.read_text())
    print(table(results["runs"]))


if __name__ == "__main__":
    main()
