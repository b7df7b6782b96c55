"""Runs tests whose kernels Triton interprets, in a process of their own.

Triton decides when it is imported whether kernels are interpreted, and other tests import it for
compiling: TRITON_INTERPRET=1 must be set before the process starts.
"""

import os
import subprocess
import sys
from pathlib import Path


def assert_passes_interpreted(*paths: Path, marker: str = "not gpu and not long") -> None:
    """Every test of the files and folders that ``marker`` picks passes: one or more."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, "--tb=short", "-m", marker, *map(str, paths)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
