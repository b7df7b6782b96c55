"""`jenga settings`: every environment variable, what it says here, and what it does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from jenga_sglang.settings import Settings, Variable, check, variables

COLUMNS = ("variable", "value", "default", "read by", "meaning")
PIPE_COLUMNS = 160


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "settings",
        help="list the environment variables",
        description="Lists every environment variable, its value here, its default and its "
        "meaning. A value that means nothing is refused as a server would refuse it.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    Settings.read(os.environ)
    check()
    rows = [row(variable, os.environ) for variable in variables().values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for values in rows:
        table.add_row(*values.values())
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table, markup=False)
    return 0


def row(variable: Variable, environ: Mapping[str, str]) -> dict[str, str]:
    """What is shown of a variable, by `COLUMNS`; of a secret only whether it is set."""
    given = environ.get(variable.name, "")
    value = "(set)" if given and variable.is_secret else given or variable.default
    shown = (variable.name, value, variable.default, variable.reader, variable.meaning)
    return dict(zip(COLUMNS, shown, strict=True))
