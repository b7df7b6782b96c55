"""Every Triton kernel compiles for sm_90a without a GPU, and moves bytes in 16-byte vectors.

The interpreter runs Python; only the compiler shows what the device would get. The operators are
called as usual, on host tensors, with a driver that names its target and launches nothing.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from flashinfer_ext import GroupLayout, page_views, pages
from flashinfer_ext.kv_write import Fp8Scales, Rope, kv_write
from flashinfer_ext.states import StateCopier, StateLayout, StatePart, state_views
from flashinfer_ext.table_spec import BatchInputs, TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import Trim

# 65,536 registers of a processor hold eight programs of 128 threads with as many.
MOST_REGISTERS = 64
PAGE = 1 << 16
ODD_PAGE = 4144  # vectors of 16 bytes, and nothing larger, divide it
IDS = torch.zeros(16, dtype=torch.int64)


class NoDevice:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return -1  # no device has this number, so no real launch finds what is compiled here

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


Compile = Callable[[Callable[[], Any]], list[Any]]


@pytest.fixture
def kernels_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Compile]:
    """Returns the compiled kernels that a call would launch."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    def kernels(call: Callable[[], Any]) -> list[Any]:
        compiled.clear()
        call()
        assert all(kernel.asm["cubin"] for kernel in compiled)
        return list(compiled)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", NoDevice())
    yield kernels


@pytest.fixture
def ptx_of(kernels_of: Compile) -> Callable[[Callable[[], Any]], list[str]]:
    """Returns the PTX of the kernels that a call would launch; none may spill registers, or take so
    many that a processor runs few programs at a time."""

    def ptx(call: Callable[[], Any]) -> list[str]:
        texts = [kernel.asm["ptx"] for kernel in kernels_of(call)]
        for text in texts:
            registers, spilled_bytes = resources(text)
            assert registers <= MOST_REGISTERS and spilled_bytes == 0, (registers, spilled_bytes)
        return texts

    return ptx


def resources(ptx: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it keeps on a stack or spills, by ptxas' account."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        command = [get_ptxas(90).path, "-v", "-arch=sm_90a", source.name, "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    used = re.search(r"Used (\d+) registers", said)
    kept = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", said)
    assert used and len(kept) == 3, said
    return int(used[1]), sum(map(int, kept))


def accesses(ptx: str) -> Counter[str]:
    """Global loads and stores by width, as `ld.global.v4.b32`."""
    return Counter(re.findall(r"\b(?:ld|st)\.global(?:\.v\d)?\.b\d+", ptx))


def assert_moves_vectors(ptx: str, stored: str = "st.global.v4.b32") -> None:
    found = accesses(ptx)
    stores = [name for name in found if name.startswith("st.")]
    assert stores == [stored], found
    assert not any(name.endswith(("b8", "b16")) for name in found), found


PAGE_CALLS = {
    "copy": lambda b, size: pages.copy_pages(b, size, IDS, IDS),
    "zero": lambda b, size: pages.zero_pages(b, size, IDS.int()),
    "zero spans": lambda b, size: pages.zero_spans(b, IDS, IDS, size),
    "gather": lambda b, size: pages.gather_pages(b, size, IDS, b.view(16, size)),
    "scatter": lambda b, size: pages.scatter_pages(b.view(16, size), b, size, IDS),
}


@pytest.mark.parametrize("name", PAGE_CALLS)
@pytest.mark.parametrize("size", [PAGE, ODD_PAGE])
def test_page_moves(ptx_of: Compile, name: str, size: int) -> None:
    buffer = torch.zeros(16 * size, dtype=torch.uint8)
    kernels = ptx_of(lambda: PAGE_CALLS[name](buffer, size))
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
    order = re.findall(r"\b(ld|st)\.global\.v4", kernels[0])
    assert "ld" not in order[order.index("st") :], "V waits until K is stored"


def test_latent_row_write(ptx_of: Compile) -> None:
    """MLA: all of a row is K."""
    layout = GroupLayout(2, 16, 1, 576, 0, torch.bfloat16, 2 * 16 * 576 * 2)
    caches = page_views(torch.zeros(layout.small_page_bytes * 2, dtype=torch.uint8), layout, 1)
    new = torch.zeros(16, 1, 576, dtype=torch.bfloat16)
    kernels = ptx_of(lambda: kv_write(new, new[..., :0], *caches, IDS))
    assert len(kernels) == 1
    assert_moves_vectors(kernels[0])


def test_state_copy(ptx_of: Compile) -> None:
    parts = (StatePart((64, 3), torch.bfloat16), StatePart((4, 8, 8), torch.float32))
    layout = StateLayout(2, parts, 4096)
    views = state_views(torch.zeros(4 * 4096, dtype=torch.uint8), layout)
    kernels = ptx_of(lambda: StateCopier(views, views).copy(IDS, IDS))
    assert len(kernels) == 1, "one launch for all layers and parts"
    assert_moves_vectors(kernels[0])


# Requests and new tokens of steps as a server meets them: decodes of any size, prompts, nothing.
STEPS = [(1, 1), (2, 2), (3, 3), (16, 16), (17, 17), (255, 255), (256, 256), (300, 300)]
STEPS += [(1, 100), (1, 8192), (3, 777), (5, 4096), (32, 33), (1, 0), (16, 0)]


def test_no_batch_needs_the_compiler_again(kernels_of: Compile) -> None:
    """A server that compiles a kernel while it serves lets every request wait for a second."""
    specs = (TableSpec(Trim(16), 64, num_stripes=2, csr_room=4096), TableSpec(Trim(16, 99), 8))
    kernels = set()
    for room in (1, 300, 512):
        builder = TableBuilder(specs, 16, room, 8192, "cpu")
        for requests, tokens in STEPS:
            if requests > room:
                continue
            # As staged: four parts of one tensor, where the batch's size decides.
            staged = torch.zeros((4, 3, requests), dtype=torch.int32).unbind()
            rows, tables = torch.zeros((300, 4096), dtype=torch.int32), torch.zeros((3, 512)).int()
            locs = torch.zeros((1, 8192), dtype=torch.int64)[:, :tokens]
            build = partial(builder.build, BatchInputs(*staged), rows, tables, locs)
            kernels |= {kernel.hash for kernel in kernels_of(build)}
    assert len(kernels) == 1


def test_no_number_of_new_tokens_needs_the_compiler_again(kernels_of: Compile) -> None:
    layout = GroupLayout(2, 16, 8, 128, 128, torch.bfloat16, 2 * 2 * 16 * 8 * 128 * 2)
    caches = page_views(torch.zeros(layout.small_page_bytes * 2, dtype=torch.uint8), layout, 1)
    kernels = set()
    for tokens in (1, 2, 3, 16, 17, 255, 4096, 5001):
        qkv = torch.zeros(tokens, 48, 128, dtype=torch.bfloat16)
        slots = torch.zeros((3, 8193), dtype=torch.int64)
        for row in slots:
            call = partial(kv_write, qkv[:, 32:40], qkv[:, 40:], *caches, row[:tokens])
            kernels |= {kernel.hash for kernel in kernels_of(call)}
    assert len(kernels) == 1


def test_page_tables(ptx_of: Compile) -> None:
    specs = (TableSpec(Trim(16), 64, num_stripes=2), TableSpec(Trim(16, 99), 8))
    builder = TableBuilder(specs, 16, 256, 512, "cpu")
    batch = BatchInputs(*(torch.zeros((1, 256), dtype=torch.int32) for _ in range(4)))
    rows, tables = (torch.zeros((n, 512), dtype=torch.int32) for n in (300, 3))
    kernels = ptx_of(lambda: builder.build(batch, rows, tables, IDS[None]))
    assert len(kernels) == 1, "one launch for all groups and stripes"
