"""`jenga report URL -o report.html`: the page with what it would show, as one file to send."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from jenga_sglang.units import argument, parse_seconds
from jenga_sglang.watch.client import Server, add_arguments, server_of
from jenga_sglang.web.page import recorded_page


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="write what the page map shows into one file",
        description="Watches a server for a while and writes one HTML file that needs nothing "
        "else, to attach to a bug report. It has token counts and request ids, no prompt text.",
    )
    add_arguments(parser)
    output = Path("report.html")
    parser.add_argument(
        "-o", "--output", type=Path, default=output, metavar="FILE", help=f"the file ({output})"
    )
    seconds = argument(parse_seconds)
    parser.add_argument(
        "--seconds", type=seconds, default=10.0, metavar="SECONDS", help="how long to watch (10)"
    )
    parser.add_argument(
        "--interval", type=seconds, default=0.5, metavar="SECONDS", help="between samples (0.5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples there as well")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    samples = record(server_of(arguments), arguments.seconds, arguments.interval)
    arguments.output.write_text(recorded_page(samples), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(samples))
    print(f"{len(samples)} samples in {arguments.output}")
    return 0


def record(server: Server, seconds: float, interval: float) -> list[dict[str, Any]]:
    """Samples of ``seconds``, at least one of every data-parallel rank; only the last of each
    keeps its maps, which are large.

    A server that stops answering ends them: what it last said is worth most then.
    """
    looks = [server.stats()]
    end = time.monotonic() + seconds
    while time.monotonic() + interval < end:
        time.sleep(interval)
        try:
            looks.append(server.stats())
        except OSError as error:
            print(f"jenga: {error}; the report ends before that", file=sys.stderr)
            break
        for sample in looks[-2]:
            del sample["map"]
            sample.pop("host_map", None)
    return [sample for look in looks for sample in look]
