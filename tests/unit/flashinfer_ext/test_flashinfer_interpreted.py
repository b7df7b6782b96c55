"""Runs the tests of `interpreted/`."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted


@pytest.mark.slow
def test_every_kernel_equals_its_reference_under_the_interpreter() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted")
