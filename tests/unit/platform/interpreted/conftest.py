"""Tests of this folder exist only where kernels are interpreted (see the runner one folder up)."""

import os

import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
torch.set_num_threads(1)
