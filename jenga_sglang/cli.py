"""The console script ``jenga``: one subcommand per module in `COMMANDS`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jenga_sglang import settings_command
from jenga_sglang.doctor import command as doctor
from jenga_sglang.plan import command as plan
from jenga_sglang.watch import explain, report, top

COMMANDS = (plan, doctor, settings_command, top, report, explain)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 2 when it cannot do what it was asked, 130 when
    it was interrupted."""
    parser = argparse.ArgumentParser(prog="jenga", description="Tools for Jenga memory in SGLang.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (OSError, ValueError) as error:
        print(f"jenga: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
