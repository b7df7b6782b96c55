"""Runs the tests of `interpreted/`."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_on_jenga_pages_give_what_plain_torch_gives() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_model_on_every_backend() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted", marker="long")
