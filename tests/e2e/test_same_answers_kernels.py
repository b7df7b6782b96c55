"""Runs the tests of `interpreted/`: schedulers whose kernels Triton interprets."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("marker", ["not long", pytest.param("long", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.name, marks=pytest.mark.xdist_group(file.name))
        for file in sorted(FOLDER.glob("test_*.py"))
    ],
)
def test_answers_of_kernels_are_stocks(name: str, marker: str) -> None:
    assert_passes_interpreted(FOLDER / name, marker)
