"""Only the inspector knows what a manager is made of: when that changes, one file of tests does."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
# The inspector, what breaks the books on purpose, and this file.
MAY = {"core_inspector.py", "test_core_corrupt.py", Path(__file__).name}
INSIDE = re.compile(
    r"\bmanager\.(memory|tree|evictor|holding|recency|publisher|needs|(snapshots\.)?_\w+)\b"
)


def test_tests_look_inside_a_manager_through_the_inspector() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{number}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in MAY
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if INSIDE.search(line)
    ]
    assert not found, "\n".join(found)


def test_what_it_looks_for_is_there_to_be_found() -> None:
    assert INSIDE.search((TESTS / "core_inspector.py").read_text())
