"""Runs the tests of `interpreted/`."""

from pathlib import Path

import pytest
from interpreter import assert_passes_interpreted


# Two of about the same length, for as many workers.
@pytest.mark.parametrize(
    "keyword",
    [
        pytest.param(keyword, marks=pytest.mark.xdist_group(keyword))
        for keyword in ("triton or fa3", "not (triton or fa3)")
    ],
)
@pytest.mark.slow
def test_kernels_on_jenga_pages_give_what_plain_torch_gives(keyword: str) -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted", keyword=keyword)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_model_on_every_backend() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted", marker="long")
