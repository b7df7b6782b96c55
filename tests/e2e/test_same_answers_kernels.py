"""Runs the tests of `interpreted/`: schedulers whose kernels Triton interprets."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))


# In one process, which imports SGLang once.
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("interpreted schedulers")
def test_answers_of_kernels_are_stocks() -> None:
    assert_passes_interpreted(*FILES)


@pytest.mark.long
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_answers_of_more_models_are_stocks(file: Path) -> None:
    assert_passes_interpreted(file, marker="long")
