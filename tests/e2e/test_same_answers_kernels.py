"""Runs the tests of `interpreted/`: schedulers whose kernels Triton interprets."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))


# Two of about the same length, for as many workers: each imports SGLang once.
@pytest.mark.parametrize(
    "half",
    [
        pytest.param(half, marks=pytest.mark.xdist_group(f"interpreted schedulers {half}"))
        for half in (0, 1)
    ],
)
def test_answers_of_kernels_are_stocks(half: int) -> None:
    assert_passes_interpreted(*FILES[half::2])


@pytest.mark.long
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_answers_of_more_models_are_stocks(file: Path) -> None:
    assert_passes_interpreted(file, marker="long")
