"""Runs the command line."""

from benchmarks.manager.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
