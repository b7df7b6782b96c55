"""Tests of this folder exist only where kernels are interpreted (see the runner one folder up)."""

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # marks are chosen from afterwards
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of every model on every backend, every other pair is for `make test-long`: what is left has
    each model on half of the backends, and each backend with half of the models. Of chains of
    drafts, which take many steps, three of four: each backend keeps one model at least."""
    for item in items:
        indices = getattr(getattr(item, "callspec", None), "indices", {})
        every = 4 if "chains_of_drafts" in item.name else 2
        if "backend" in indices and len(indices) > 1 and sum(indices.values()) % every:
            item.add_marker(pytest.mark.long)
