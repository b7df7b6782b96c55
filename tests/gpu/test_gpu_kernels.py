"""The Triton kernels on a GPU, in the dtypes that the interpreter cannot run."""

import pytest
import torch

from flashinfer_ext import GroupLayout, page_views, pages, reference
from flashinfer_ext.kv_write import Fp8Scales, Rope, kv_write
from flashinfer_ext.states import StateCopier, StateLayout, StatePart, state_views
from flashinfer_ext.table_spec import BatchInputs, TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import Trim, host_counts, max_entries

pytestmark = pytest.mark.gpu

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
DTYPES = (torch.float16, BF16, torch.float32)
# Rotated K is rounded to its dtype once; a fused multiply-add may move it by one step.
ONE_STEP = {torch.float16: 2**-10, BF16: 2**-7, torch.float32: 2**-22}


def layout_of(dtype: torch.dtype, dim_v: int = 128, layers: int = 3) -> GroupLayout:
    payload = layers * 16 * 4 * (128 + dim_v) * dtype.itemsize
    return GroupLayout(layers, 16, 4, 128, dim_v, dtype, payload)


def random_bytes(size: int, device: torch.device) -> torch.Tensor:
    # Exponents stay away from NaN, so that tensors can be compared as numbers.
    return torch.randint(0, 64, (size,), dtype=torch.uint8, device=device)


def new_tokens(count: int, dim_v: int, dtype: torch.dtype, device: torch.device):
    torch.manual_seed(count)
    k, v = torch.randn(count, 4, 128, device=device), torch.randn(count, 4, dim_v, device=device)
    return k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim_v", [128, 64, 0])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_kv_writes_are_exact(device, dtype, dim_v, count) -> None:
    layout = layout_of(dtype, dim_v)
    got = random_bytes(layout.small_page_bytes * 100, device)
    expected = got.clone()
    k, v = new_tokens(count, dim_v, dtype, device)
    slots = torch.randperm(1600, device=device)[:count]
    slots[::5] = -1
    kv_write(k, v, *page_views(got, layout, 1), slots)
    reference.kv_write(k, v, *page_views(expected, layout, 1), slots)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rope_dim", [128, 64])
def test_rotated_kv_writes(device, dtype, interleaved, rope_dim) -> None:
    layout = layout_of(dtype)
    got = random_bytes(layout.small_page_bytes * 100, device)
    expected = got.clone()
    k, v = new_tokens(500, 128, dtype, device)
    angles = torch.rand(4096, rope_dim // 2, device=device) * 6.3
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1)
    rope = Rope(torch.randint(0, 4096, (500,), device=device), cos_sin, interleaved)
    slots = torch.randperm(1600, device=device)[:500]
    kv_write(k, v, *page_views(got, layout, 2), slots, rope)
    reference.kv_write(k, v, *page_views(expected, layout, 2), slots, rope)
    step = ONE_STEP[dtype]
    for mine, other in zip(
        page_views(got, layout, 2), page_views(expected, layout, 2), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=step, atol=step)


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_fp8_writes_round_as_torch_does(device, dtype) -> None:
    layout = layout_of(dtype)
    got = random_bytes(layout.small_page_bytes * 100, device)
    expected = got.clone()
    k, v = new_tokens(1000, 128, BF16, device)
    scales = Fp8Scales(torch.tensor([0.003], device=device), torch.tensor([0.7], device=device))
    slots = torch.randperm(1600, device=device)[:1000]
    kv_write(k, v, *page_views(got, layout, 0), slots, scales=scales)
    reference.kv_write(k, v, *page_views(expected, layout, 0), slots, scales=scales)
    assert torch.equal(got, expected)


def test_writes_past_every_32_bit_offset(device, far_pool) -> None:
    layout = layout_of(BF16)
    last = layout.num_pages(far_pool.numel()) - 1
    assert last * layout.page_stride_elements > 2**33
    k, v = new_tokens(3, 128, BF16, device)
    slots = torch.tensor([last * 16 + 15, last // 2 * 16, last // 4 * 16 + 7], device=device)
    kv_write(k, v, *page_views(far_pool, layout, 2), slots)
    for cache, new in zip(page_views(far_pool, layout, 2), (k, v), strict=True):
        assert torch.equal(cache[slots // 16, slots % 16], new)
        assert int(cache[slots // 16].isfinite().sum()) == new.numel()


@pytest.mark.parametrize("page_bytes", [16, 4096, 1_310_720, 6_815_744])
def test_page_moves_are_exact(device, page_bytes) -> None:
    torch.manual_seed(page_bytes)
    buffer = torch.randint(0, 256, (page_bytes * 20,), dtype=torch.uint8, device=device)
    order = torch.randperm(20, device=device)
    source, target, erased = order[:6], order[6:12].int(), order[12:15]
    source[2], target[3] = -1, -1
    expected = buffer.clone()
    reference.copy_pages(expected, page_bytes, source, target)
    reference.zero_pages(expected, page_bytes, erased)
    pages.copy_pages(buffer, page_bytes, source, target)
    pages.zero_pages(buffer, page_bytes, erased)
    assert torch.equal(buffer, expected)
    rows = torch.empty(15, page_bytes, dtype=torch.uint8, device=device)
    pages.gather_pages(buffer, page_bytes, order[:15].contiguous(), rows)
    pages.zero_pages(buffer, page_bytes, order[:15].contiguous())
    pages.scatter_pages(rows, buffer, page_bytes, order[:15].contiguous())
    kept = order[torch.arange(20, device=device) != 2]
    assert torch.equal(buffer.view(20, -1)[kept], expected.view(20, -1)[kept])


def test_pages_move_past_every_32_bit_offset(device, far_pool) -> None:
    page, last = 1 << 20, (far_pool.numel() >> 20) - 1
    far_pool[5 * page : 6 * page] = torch.randint(0, 255, (page,), dtype=torch.uint8, device=device)
    pages.copy_pages(
        far_pool, page, torch.tensor([5], device=device), torch.tensor([last], device=device)
    )
    assert torch.equal(far_pool[last * page :], far_pool[5 * page : 6 * page])
    assert bool((far_pool[(last - 1) * page : last * page] == 255).all())


def test_states_are_copied_bit_for_bit(device) -> None:
    parts = (StatePart((4096, 3), BF16), StatePart((32, 128, 128), torch.float32))
    layers = 6
    payload = layers * sum(part.padded_bytes for part in parts)
    layout = StateLayout(layers, parts, payload + 4096)
    buffer = torch.full((payload * 5 + 5 * 4096,), 255, dtype=torch.uint8, device=device)
    pools = [torch.randn(layers, 7, *p.shape, device=device).to(p.dtype) for p in parts]
    active = [pool[layer] for layer in range(layers) for pool in pools]
    views = state_views(buffer, layout)
    slots = torch.tensor([6, 0, -1, 3], device=device)
    targets = torch.tensor([1, 4, 2, -1], device=device)
    StateCopier(active, views).copy(slots, targets)
    for view, pool in zip(views, active, strict=True):
        assert torch.equal(view[1], pool[6]) and torch.equal(view[4], pool[0])
        assert not view[2].isfinite().any() and not view[3].isfinite().any()
    before = [pool.clone() for pool in active]
    StateCopier(views, active).copy(targets[:2], torch.tensor([2, 5], device=device))
    for pool, old in zip(active, before, strict=True):
        assert torch.equal(pool[2], old[6]) and torch.equal(pool[5], old[0])


GROUPS = (
    (Trim(16), 3, 1),
    (Trim(16, 1023), 1, 1),
    (Trim(1, 127), 2, 96),
    (Trim(16, chunk_tokens=512), 1, 6),
)


class Tables:
    """Four groups with seven page tables, and 256 requests of random lengths."""

    def __init__(self, device: torch.device, requests: int = 256, max_kv: int = 3000) -> None:
        self.specs = tuple(
            TableSpec(
                trim, max_entries(trim, max_kv, 64), page_mul=mul, write_mul=16, num_stripes=n
            )
            for trim, n, mul in GROUPS
        )
        self.builder = TableBuilder(self.specs, 16, requests, 1024, device)
        self.device, self.requests, self.max_kv = device, requests, max_kv
        shapes = {"virtual_rows": (requests, 200), "page_tables": (7, 60_000)}
        self.virtual_rows, self.page_tables = (
            torch.randint(-1, 50_000, shape, dtype=torch.int32, device=device)
            for shape in shapes.values()
        )
        self.locs = torch.randint(-1, 800_000, (1, 1024), device=device)
        self.batch = BatchInputs(*(self._ints(0, requests) for _ in range(4)))
        self.refill(0)

    def _ints(self, low: int, high: int) -> torch.Tensor:
        shape = (1, self.requests)
        return torch.randint(low, high, shape, dtype=torch.int32, device=self.device)

    def refill(self, seed: int) -> None:
        """New numbers in the same tensors, as a captured graph wants them."""
        torch.manual_seed(seed)
        self.batch.kv_lens.copy_(self._ints(0, self.max_kv + 1))
        self.batch.q_lens.copy_(self._ints(0, 65).minimum(self.batch.kv_lens))
        self.batch.first_pages.copy_(self._ints(0, 5))
        self.batch.req_rows.copy_(self._ints(0, self.requests))

    def build(self) -> None:
        self.builder.build(self.batch, self.virtual_rows, self.page_tables, self.locs)

    def check(self) -> None:
        host = BatchInputs(*(t.cpu() for t in vars(self.batch).values()))
        table = 0
        for group, spec in enumerate(self.specs):
            built = self.builder.tables(group, self.requests, 1024)
            counts = host_counts(spec.trim, host.kv_lens[0], host.q_lens[0])
            assert torch.equal(built.indptr.cpu(), counts.indptr_cpu)
            assert torch.equal(built.kv_lens.cpu(), counts.kv_lens_cpu)
            assert torch.equal(built.last_page_len.cpu(), counts.last_page_len_cpu)
            for stripe in range(spec.num_stripes):
                pages_cpu, rows = self.page_tables[table].cpu(), self.virtual_rows.cpu()
                entries = reference.table_entries(spec, 16, host, rows, pages_cpu)
                flat = [index for row in entries for index in row]
                assert built.indices[stripe][: len(flat)].tolist() == flat
                dense = built.block_tables[stripe].cpu()
                for row, own in zip(dense, entries, strict=True):
                    assert row[: len(own)].tolist() == own
                slots = reference.write_slots(spec, 16, pages_cpu, self.locs[0].cpu())
                assert built.slots[stripe].tolist() == slots
                table += 1


def test_tables_of_all_groups_equal_brute_force(device) -> None:
    tables = Tables(device)
    tables.build()
    tables.check()


def test_a_captured_build_follows_the_numbers(device) -> None:
    tables = Tables(device, requests=33)
    tables.build()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tables.build()
    for seed in (1, 2, 3):
        tables.refill(seed)
        graph.replay()
        tables.check()
