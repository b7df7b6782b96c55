"""Runs the command line."""

from benchmarks.replay.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
