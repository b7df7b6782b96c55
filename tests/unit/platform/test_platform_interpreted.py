"""Runs the tests of `interpreted/`."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted


@pytest.mark.slow
def test_torch_operators_equal_sglangs_kernels_under_the_interpreter() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted")
