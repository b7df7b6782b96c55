"""Runs the command line."""

from benchmarks.serving.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
