"""Compares real servers of equal bytes under `sglang.bench_serving`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run the chosen command, return the exit status."""
    options = _parser().parse_args(arguments)
    options.handler(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="start servers and compare them")
    run.add_argument("--quick", action="store_true", help="a small load, one round")
    run.add_argument("--models", nargs="+", choices=("gemma", "llama"), help="both")
    run.add_argument("--repeats", type=int, help="rounds")
    run.add_argument("--json", type=Path, help="where the figures go")
    run.set_defaults(handler=_run)
    table = commands.add_parser("table", help="print results as a Markdown table")
    table.add_argument("results", type=Path)
    table.set_defaults(handler=_table)
    return parser


def _run(options: argparse.Namespace) -> None:
    from benchmarks.serving.comparison import FULL, QUICK, compare
    from benchmarks.serving.report import table

    plan = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in ("models", "repeats")}
    results = compare(replace(plan, **{k: v for k, v in given.items() if v is not None}))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results["runs"]))


def _table(options: argparse.Namespace) -> None:
    from benchmarks.serving.report import table

    print(table(json.loads(options.results.read_text())["runs"]))
