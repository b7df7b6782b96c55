"""The papers' tables: README and command agree, and the numbers are those of simple formulas."""

from pathlib import Path

import pytest

from benchmarks.paper import __main__ as paper
from benchmarks.paper.tables import FULL, PLANNED, fragmentation, longest_context

README = (Path(paper.__file__).parent / "README.md").read_text()


@pytest.mark.parametrize("name", paper.TABLES)
def test_the_readme_has_what_the_command_prints(name: str) -> None:
    assert paper.table(name) in README


def test_what_is_lost_without_windows_is_what_they_have_forgotten() -> None:
    """Nine layers of 36 need all of 247,500 tokens, the others three windows."""
    needed = 9 * 247_500 + 27 * 3 * 32_768
    rows = {row[0]: row[1:] for row in fragmentation()}
    assert float(rows[FULL][0].rstrip("%")) == pytest.approx(
        100 * (1 - needed / (36 * 247_500)), abs=0.02
    )
    assert float(rows[PLANNED][0].rstrip("%")) < 0.05


def test_a_context_is_as_much_longer_as_few_layers_see_all_of_it() -> None:
    rows = {name: float(times) for name, _, times in longest_context()}
    assert rows[PLANNED] == pytest.approx(48 / 12, abs=0.03)
