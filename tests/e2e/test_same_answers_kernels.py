"""Runs the tests of `interpreted/`: schedulers whose kernels Triton interprets."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted


@pytest.mark.parametrize("marker", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_answers_of_kernels_are_stocks(marker: str) -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted", marker)
