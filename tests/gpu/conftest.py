"""What the GPU tests share: the device, FlashInfer's modules built at once, and a far pool."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

WORKSPACE_BYTES = 256 << 20
FAR_POOL_BYTES = 20 << 30
CACHE = Path(__file__).parents[2] / ".cache" / "flashinfer"


@pytest.fixture(scope="session")
def device() -> torch.device:
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    return torch.device("cuda")


@pytest.fixture(scope="session")
def is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9


@pytest.fixture(scope="session")
def flashinfer_modules(device: torch.device, is_hopper: bool) -> None:
    """Everything the tests load: of the kit, or compiled side by side; what a command has compiled
    is reused.

    `python -m flashinfer_ext.aot --arch 9.0a --set gpu` fills the same folder beforehand.
    """
    from flashinfer_ext.aot import make_ready
    from flashinfer_ext.modules import gpu_test_modules

    make_ready([m for m in gpu_test_modules() if is_hopper or "fa3" not in m.name], CACHE)


@pytest.fixture(scope="session")
def workspace(device: torch.device) -> torch.Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


@pytest.fixture(scope="session")
def far_memory(device: torch.device) -> torch.Tensor:
    return torch.empty(FAR_POOL_BYTES, dtype=torch.uint8, device=device)


@pytest.fixture
def far_pool(far_memory: torch.Tensor) -> Iterator[torch.Tensor]:
    """(20 GiB,) uint8, all NaN: element offsets in bf16 go past 2**33."""
    yield far_memory.fill_(255)
