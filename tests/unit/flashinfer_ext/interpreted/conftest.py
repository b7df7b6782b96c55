"""Tests of this folder exist only where kernels are interpreted (see the runner one folder up)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
torch.set_num_threads(1)


@pytest.fixture
def far_pool(tmp_path: Path) -> Iterator[torch.Tensor]:
    """(24 GiB,) uint8 from a sparse file: only what is touched takes memory or disk."""
    path = tmp_path / "pool"
    yield torch.from_file(str(path), shared=True, size=24 << 30, dtype=torch.uint8)
    path.unlink()
