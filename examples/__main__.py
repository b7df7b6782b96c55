"""`python -m examples PROGRAM --url URL`: run one program and print what it made."""

from __future__ import annotations

import argparse
import os

from examples.programs import PROGRAMS, run_program
from jenga_sglang import settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="default: %(default)s")
    parser.add_argument(
        "--api-key", default=settings.value("api_key", os.environ), help="default: $JENGA_API_KEY"
    )
    arguments = parser.parse_args()
    try:
        outcome = run_program(arguments.program, arguments.url, arguments.api_key)
    except OSError as error:
        raise SystemExit(f"{arguments.url}: {error}; `make serve` starts a server") from error
    for name, text in outcome.outputs:
        print(f"{name}: {text}")
    print(f"{outcome.cached_tokens:,} of {outcome.prompt_tokens:,} prompt tokens were cached")


if __name__ == "__main__":
    main()
