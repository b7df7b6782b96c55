"""How long the manager's operations take, by size of the pool, of the tree and of a batch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.manager.pools import GEOMETRIES

POOLS = (10**3, 10**4, 10**5, 10**6, 10**7)
TREES = (100, 1_000, 10_000, 100_000)
BATCHES = (1, 4, 16, 64, 256, 1_024)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run the chosen command, return the exit status."""
    options = _parser().parse_args(arguments)
    options.handler(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manager", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_run(commands)
    _add_results(commands, "table", "print results as Markdown tables", _table)
    plot = _add_results(commands, "plot", "draw results", _plot)
    plot.add_argument("--out", type=Path, required=True)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="time the operations")
    run.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    run.add_argument("--pools", type=_count, nargs="+", default=POOLS, help="large pages")
    run.add_argument("--trees", type=_count, nargs="*", default=TREES, help="cached prefixes")
    run.add_argument("--batches", type=_count, nargs="*", default=BATCHES, help="requests")
    run.add_argument("--batch", type=_count, default=16, help="requests where it is not swept")
    run.add_argument("--batch-pool", type=_count, default=10**6, help="where batches are swept")
    run.add_argument("--rounds", type=_count, default=100, help="at most, for every point")
    run.add_argument("--seconds", type=float, default=8, help="of measuring, for every point")
    run.add_argument("--json", type=Path, help="where the figures go")
    run.set_defaults(handler=_run)


def _add_results(commands: Any, name: str, text: str, handler: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.add_argument("results", type=Path, nargs="+")
    parser.set_defaults(handler=handler)
    return parser


def _count(text: str) -> int:
    """An integer; 1e6 is one too."""
    number = float(text)
    if number != int(number) or number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(number)


def _run(options: argparse.Namespace) -> None:
    from benchmarks.manager.report import tables
    from benchmarks.manager.sweeps import Sizes, measure

    names = Sizes.__dataclass_fields__
    results = measure(Sizes(**{name: getattr(options, name) for name in names}))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(results["points"]))


def _table(options: argparse.Namespace) -> None:
    from benchmarks.manager.report import load_points, tables

    print(tables(load_points(options.results)))


def _plot(options: argparse.Namespace) -> None:
    from benchmarks.manager.figures import plot_points
    from benchmarks.manager.report import load_points

    plot_points(load_points(options.results), options.out)
