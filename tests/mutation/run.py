"""Change the core in many places, one at a time, and count the changes that its unit tests notice.

    make mutate                     # MUTANTS=200 SEED=0
    make mutate MUTANTS=6000        # all of them, for hours

`mutmut` makes the changes (mutants) and runs, for each, the tests that reach the changed function.
The sample is those mutants whose names have the least hashes with the seed, so that two versions of
the core are judged by nearly the same ones. Needs numpy, pytest, hypothesis and mutmut only.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "pyproject.toml",
    "jenga_sglang/__init__.py",
    "jenga_sglang/core",
    "docs/architecture.md",
    "tests",
)
NOT_COPIED = shutil.ignore_patterns("__pycache__", "e2e", "gpu", "web", "recall", "server", "*.md")
# A mutant is given up after twice the multiple of what its tests take, in CPU time: some never end.
CONFIG = """[mutmut]
source_paths = jenga_sglang
only_mutate = jenga_sglang/core/*
also_copy = docs
pytest_add_cli_args_test_selection =
    tests/unit/core
    --ignore=tests/unit/core/test_core_swing.py
timeout_multiplier = 1.5
timeout_constant = 2.0
use_git_change_detection = false
"""
NOTICED = ("killed", "timeout", "segfault")


def main() -> None:
    arguments = _arguments()
    folder = ROOT / ".cache" / "mutation"
    _copy_sources(folder)
    with contextlib.chdir(folder):
        statuses = _run(arguments.mutants, arguments.seed)
    times = os.times()
    _report(statuses, arguments.seed, times.user + times.children_user)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    return parser.parse_args()


def _copy_sources(folder: Path) -> None:
    """What is mutated is a copy, beside nothing that was made before."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=NOT_COPIED)
        else:
            shutil.copy(source, target)
    (folder / "setup.cfg").write_text(CONFIG)


def _run(count: int, seed: int) -> dict[str, str]:
    """The status of each mutant of the sample, by its name."""
    from mutmut import __main__ as mutmut  # reads its configuration in the working directory
    from mutmut.stats import status_by_exit_code

    folder = Path("mutants")
    folder.mkdir()
    mutmut.copy_src_dir()
    mutmut.create_mutants(1)
    sample = sorted(_exit_codes(folder), key=lambda name: _rank(name, seed))[:count]
    mutmut._run(sample, 1)
    codes = _exit_codes(folder)
    return {name: status_by_exit_code[codes[name]] for name in sample}


def _rank(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _exit_codes(folder: Path) -> dict[str, int | None]:
    files = sorted(folder.rglob("*.meta"))
    return {n: c for f in files for n, c in json.loads(f.read_text())["exit_code_by_key"].items()}


def _report(statuses: dict[str, str], seed: int, cpu_seconds: float) -> None:
    counts = Counter(statuses.values())
    noticed = sum(counts[status] for status in NOTICED)
    print(f"noticed {noticed} of {len(statuses)} mutants ({noticed / len(statuses):.1%}), {seed=}")
    print(", ".join(f"{status}: {n}" for status, n in counts.most_common()), end="")
    print(f"; {cpu_seconds / 60:.0f} CPU minutes")
    for name, status in sorted(statuses.items()):
        if status not in NOTICED:
            print(f"  {status}: {name}")


if __name__ == "__main__":
    main()
