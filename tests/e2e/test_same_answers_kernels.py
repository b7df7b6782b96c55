"""Runs the tests of `interpreted/`, schedulers whose kernels Triton interprets, in a process of
their own: TRITON_INTERPRET=1 must be set before anything imports Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("marker", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_answers_of_kernels_are_stocks(marker: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, "--tb=short", "-m", marker, str(FOLDER)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
