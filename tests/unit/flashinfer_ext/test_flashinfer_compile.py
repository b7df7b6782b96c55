"""Every Triton kernel compiles for sm_90a without a GPU, and moves bytes in 16-byte vectors.

The interpreter runs Python; only the compiler shows what the device would get. The operators are
called as usual, on host tensors, with a driver that names its target and launches nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from flashinfer_ext import GroupLayout, page_views, pages
from flashinfer_ext.kv_write import Fp8Scales, Rope, kv_write
from flashinfer_ext.states import StateCopier, StateLayout, StatePart, state_views
from flashinfer_ext.table_spec import BatchInputs, TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import Trim

PAGE = 1 << 16
IDS = torch.zeros(16, dtype=torch.int64)


class NoDevice:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return -1  # no device has this number, so no real launch finds what is compiled here

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


Compile = Callable[[Callable[[], Any]], list[str]]


@pytest.fixture
def ptx_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compile]:
    """Returns the PTX of the kernels that a call would launch."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    def ptx(call: Callable[[], Any]) -> list[str]:
        compiled.clear()
        call()
        assert all(kernel.asm["cubin"] for kernel in compiled)
        return [kernel.asm["ptx"] for kernel in compiled]

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", NoDevice())
    yield ptx


def accesses(ptx: str) -> Counter[str]:
    """Global loads and stores by width, as `ld.global.v4.b32`."""
    return Counter(re.findall(r"\b(?:ld|st)\.global(?:\.v\d)?\.b\d+", ptx))


def assert_moves_vectors(ptx: str, stored: str = "st.global.v4.b32") -> None:
    found = accesses(ptx)
    stores = [name for name in found if name.startswith("st.")]
    assert stores == [stored], found
    assert not any(name.endswith(("b8", "b16")) for name in found), found


PAGE_CALLS = {
    "copy": lambda b: pages.copy_pages(b, PAGE, IDS, IDS),
    "zero": lambda b: pages.zero_pages(b, PAGE, IDS.int()),
    "zero spans": lambda b: pages.zero_spans(b, IDS, IDS, PAGE),
    "gather": lambda b: pages.gather_pages(b, PAGE, IDS, b.view(16, PAGE)),
    "scatter": lambda b: pages.scatter_pages(b.view(16, PAGE), b, PAGE, IDS),
}


@pytest.mark.parametrize("name", PAGE_CALLS)
def test_page_moves(ptx_of: Compile, name: str) -> None:
    buffer = torch.zeros(16 * PAGE, dtype=torch.uint8)
    kernels = ptx_of(lambda: PAGE_CALLS[name](buffer))
    assert len(kernels) == 1
    assert_moves_vectors(kernels[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("rotate", [False, True])
def test_kv_write(ptx_of: Compile, dtype: torch.dtype, rotate: bool) -> None:
    layout = GroupLayout(2, 16, 8, 128, 128, dtype, 2 * 2 * 16 * 8 * 128 * dtype.itemsize)
    buffer = torch.zeros(layout.small_page_bytes * 2, dtype=torch.uint8)
    caches = page_views(buffer, layout, 1)
    new = torch.zeros(16, 8, 128, dtype=torch.bfloat16)
    rope = Rope(IDS, torch.zeros(64, 128)) if rotate else None
    scales = Fp8Scales(torch.ones(1), torch.ones(1)) if dtype.itemsize == 1 else None
    kernels = ptx_of(lambda: kv_write(new, new, *caches, IDS, rope, scales))
    assert len(kernels) == 1, "one launch for K and V"
    assert_moves_vectors(kernels[0])


def test_state_copy(ptx_of: Compile) -> None:
    parts = (StatePart((64, 3), torch.bfloat16), StatePart((4, 8, 8), torch.float32))
    layout = StateLayout(2, parts, 4096)
    views = state_views(torch.zeros(4 * 4096, dtype=torch.uint8), layout)
    kernels = ptx_of(lambda: StateCopier(views, views).copy(IDS, IDS))
    assert len(kernels) == 1, "one launch for all layers and parts"
    assert_moves_vectors(kernels[0])


def test_page_tables(ptx_of: Compile) -> None:
    specs = (TableSpec(Trim(16), 64, num_stripes=2), TableSpec(Trim(16, 99), 8))
    builder = TableBuilder(specs, 16, 256, 512, "cpu")
    batch = BatchInputs(*(torch.zeros((1, 256), dtype=torch.int32) for _ in range(4)))
    rows, tables = (torch.zeros((n, 512), dtype=torch.int32) for n in (300, 3))
    kernels = ptx_of(lambda: builder.build(batch, rows, tables, IDS[None]))
    assert len(kernels) == 1, "one launch for all groups and stripes"
