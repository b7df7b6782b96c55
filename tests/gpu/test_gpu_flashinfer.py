"""FlashInfer's kernels on Jenga views against float64, and against themselves on dense caches.

Every pool is NaN wherever the batch has not written, pages are out of order, and the far pool puts
them beyond every 32-bit element offset.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from flashinfer_ext import GroupLayout, check_kernel_limits, pages
from flashinfer_ext.kv_write import Fp8Scales, kv_write
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.testing import CaseSpec, PagedCase
from flashinfer_ext.variants import Variant
from flashinfer_ext.xqa import XqaDecode

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("flashinfer_modules")]

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
# Kernels keep weights and outputs in bf16, 8 bits of mantissa; inputs are standard normal.
TOLERANCE = {"rtol": 1e-2, "atol": 1e-2}
KV_LENS = (1, 17, 1000, 4097, 16, 300)
Q_LENS = (1, 17, 500, 33, 16, 129)


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention; `limit` is its name in `limits.KERNELS`."""

    limit: str
    qo_heads: int = 16
    decode: bool = True
    backend: str = "fa2"


KERNELS = {
    "decode on CUDA cores": Kernel("fa2_decode", qo_heads=8),
    "decode on tensor cores": Kernel("fa2_prefill"),
    "XQA": Kernel("xqa"),
    "FA2 prefill": Kernel("fa2_prefill", decode=False),
    "FA3 prefill": Kernel("fa3_prefill", decode=False, backend="fa3"),
}


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, is_hopper: bool) -> Kernel:
    kernel = KERNELS[request.param]
    if kernel.limit in ("fa3_prefill", "xqa") and not is_hopper:
        pytest.skip("needs sm_90")
    return kernel


def layout_of(
    dim: int = 128,
    dtype: torch.dtype = BF16,
    dim_v: int | None = None,
    padding: int = 0,
    tokens: int = 16,
) -> GroupLayout:
    dim_v = dim if dim_v is None else dim_v
    payload = 3 * tokens * 4 * (dim + dim_v) * dtype.itemsize
    return GroupLayout(3, tokens, 4, dim, dim_v, dtype, payload + padding)


def latent_layout() -> GroupLayout:
    return GroupLayout(3, 16, 1, 576, 0, BF16, 3 * 16 * 576 * BF16.itemsize)


def case_spec(kernel: Kernel, **change: Any) -> CaseSpec:
    q_lens = (1,) * len(KV_LENS) if kernel.decode else Q_LENS
    spec = CaseSpec(layout_of(), KV_LENS, q_lens, kernel.qo_heads, layer=1)
    return replace(spec, **change)


def attention_spec(
    case: PagedCase, backend: str = "fa2", variant: Variant | None = None
) -> AttentionSpec:
    spec = case.spec
    return AttentionSpec(
        num_qo_heads=spec.num_qo_heads,
        num_kv_heads=spec.layout.num_kv_heads,
        head_dim_qk=spec.layout.head_dim_k,
        head_dim_vo=spec.latent_dim or spec.layout.head_dim_v,
        entry_tokens=spec.trim.entry_tokens,
        q_dtype=BF16,
        kv_dtype=spec.layout.dtype,
        scale=spec.scale,
        window_left=spec.window_left,
        soft_cap=spec.soft_cap,
        backend=backend,
        variant=variant,
        is_latent=spec.layout.is_latent,
    )


def run(
    kernel: Kernel,
    case: PagedCase,
    workspace: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention of the case by the kernel, planned by us; on `caches` instead of the views."""
    spec = attention_spec(case, kernel.backend)
    caches = caches or case.views()
    if kernel.limit == "xqa":
        return XqaDecode(spec, workspace.zero_()).run(
            case.q, *caches, case.tables, sinks=case.sinks
        )
    planner = GroupPlanner(spec, workspace, len(case.spec.kv_lens), len(case.q))
    plan = planner.decode(0, case.tables) if kernel.decode else planner.prefill(case.tables)
    q_lens = None if kernel.decode else torch.tensor(case.spec.q_lens)
    for _ in range(2):  # FlashInfer's own plan, then ours
        plan.plan(case.spec.counts(), q_lens)
    return plan.run(case.q, *caches)


def made(spec: CaseSpec, device: torch.device, buffer: torch.Tensor | None = None) -> PagedCase:
    case = PagedCase(spec, device, BF16, buffer)
    case.build()
    case.write()
    return case


def assert_right(out: torch.Tensor, case: PagedCase) -> None:
    torch.testing.assert_close(out.double(), case.expected(), **TOLERANCE)


@pytest.mark.parametrize("window", [-1, 0, 127, 5000])
def test_page_views(device, workspace, kernel, window) -> None:
    case = made(case_spec(kernel, window_left=window), device)
    assert check_kernel_limits(case.buffer, case.spec.layout, (kernel.limit,)) == []
    assert_right(run(kernel, case, workspace), case)


@pytest.mark.parametrize("window", [-1, 127])
def test_views_give_what_dense_copies_give(device, workspace, kernel, window) -> None:
    case = made(case_spec(kernel, window_left=window), device)
    strided = run(kernel, case, workspace)
    dense = tuple(cache.contiguous() for cache in case.views())
    assert torch.equal(strided, run(kernel, case, workspace, dense))


@pytest.mark.parametrize("window", [-1, 127])
def test_offsets_past_every_32_bit_number(device, workspace, far_pool, kernel, window) -> None:
    layout = layout_of()
    count = layout.num_pages(far_pool.numel())
    case = made(case_spec(kernel, window_left=window, num_pages=count), device, far_pool)
    farthest = int(case.page_table.max()) * layout.page_stride_elements
    assert farthest > 2**32
    assert_right(run(kernel, case, workspace), case)


@pytest.mark.parametrize("view", ["row", "block"])
def test_row_and_block_views(device, workspace, kernel, view) -> None:
    if view == "row" and kernel.limit == "xqa":
        pytest.skip("XQA has no pages of one token")
    case = made(case_spec(kernel, view=view, window_left=127), device)
    assert_right(run(kernel, case, workspace), case)


def test_padded_pages(device, workspace, kernel) -> None:
    case = made(case_spec(kernel, layout=layout_of(padding=1024)), device)
    assert_right(run(kernel, case, workspace), case)


@pytest.mark.parametrize("tokens", [8, 64])
def test_page_sizes(device, workspace, kernel, tokens) -> None:
    if kernel.limit == "xqa":
        pytest.skip("is compiled for pages of 16 tokens")
    case = made(case_spec(kernel, layout=layout_of(tokens=tokens), window_left=127), device)
    assert_right(run(kernel, case, workspace), case)


@pytest.mark.parametrize("name", ["decode on tensor cores", "FA2 prefill"])
@pytest.mark.parametrize("qo_heads", [8, 16])
def test_unequal_head_dims_of_k_and_v(device, workspace, name, qo_heads) -> None:
    layout = layout_of(dim=192, dim_v=128)
    kernel = replace(KERNELS[name], qo_heads=qo_heads)
    case = made(case_spec(kernel, layout=layout), device)
    assert_right(run(kernel, case, workspace), case)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("backend", ["fa2", "fa3"])
@pytest.mark.parametrize("is_far", [False, True])
def test_latent_rows(device, workspace, is_hopper, request, kind, backend, is_far) -> None:
    """Both parts of a row are read where it lies, past 32-bit offsets too."""
    if backend == "fa3" and not is_hopper:
        pytest.skip("needs sm_90")
    layout = latent_layout()
    pool = request.getfixturevalue("far_pool") if is_far else None
    pages = None if pool is None else layout.num_pages(pool.numel())
    kernel = Kernel("mla", decode=kind == "decode", backend=backend)
    case = made(
        case_spec(kernel, layout=layout, latent_dim=512, num_pages=pages), device, buffer=pool
    )
    assert check_kernel_limits(case.buffer, layout, ("mla",)) == []
    assert_right(run(kernel, case, workspace), case)


def test_soft_cap(device, workspace) -> None:
    kernel = KERNELS["decode on CUDA cores"]
    case = made(case_spec(kernel, soft_cap=2.0), device)
    assert_right(run(kernel, case, workspace), case)


def test_chunked_local_decode(device, workspace) -> None:
    """Chunks need no kernel of their own: the table starts at the chunk."""
    kernel = KERNELS["decode on tensor cores"]
    case = made(case_spec(kernel, chunk_tokens=512), device)
    assert_right(run(kernel, case, workspace), case)


def test_fp8_pages(device, workspace) -> None:
    kernel = KERNELS["FA2 prefill"]
    case = PagedCase(case_spec(kernel, layout=layout_of(dtype=FP8)), device, BF16)
    case.build()
    one = torch.ones(1, device=device)
    scales = Fp8Scales(one, one)
    kv_write(case.keys, case.values, *case.page_views(), case.tables.slots[0], scales=scales)
    assert_right(run(kernel, case, workspace), case)


def test_sinks_with_a_window(device, workspace) -> None:
    kernel = KERNELS["FA2 prefill"]
    layout = layout_of(dim=64)
    case = made(case_spec(kernel, layout=layout, window_left=127, with_sinks=True), device)
    variant = Variant("sink", BF16, BF16, 64, 64, window=True)
    planner = GroupPlanner(attention_spec(case, variant=variant), workspace, 6, len(case.q))
    plan = planner.prefill(case.tables)
    for _ in range(2):
        plan.plan(case.spec.counts(), torch.tensor(case.spec.q_lens))
    assert_right(plan.run(case.q, *case.views(), case.sinks), case)


def test_xqa_sinks(device, workspace, is_hopper) -> None:
    if not is_hopper:
        pytest.skip("needs sm_90")
    kernel = KERNELS["XQA"]
    case = made(case_spec(kernel, window_left=127, with_sinks=True), device)
    assert_right(run(kernel, case, workspace), case)


def test_hidden_pages(device, workspace) -> None:
    from flashinfer_ext import reference

    kernel = KERNELS["FA2 prefill"]
    case = made(case_spec(kernel), device)
    torch.manual_seed(1)
    shown = torch.rand(case.block_tables.shape, device=device) < 0.7
    counts = case.spec.counts()
    for row, kv_len in zip(shown, case.spec.kv_lens, strict=True):
        row[(kv_len - 1) // 16] = True
    sizes = counts.indptr_cpu.diff().tolist()
    mask = torch.cat([row[:n] for row, n in zip(shown, sizes, strict=True)]).to(torch.uint8)
    variant = Variant("page_mask", BF16, BF16, 128, 128, window=False)
    planner = GroupPlanner(attention_spec(case, variant=variant), workspace, 6, len(case.q))
    plan = planner.prefill(case.tables)
    for _ in range(2):
        plan.plan(counts, torch.tensor(case.spec.q_lens))
    # Queries whose every page is hidden have no answer; give each its own page.
    lens = (list(case.spec.kv_lens), list(case.spec.q_lens))
    arguments = (case.q, *case.views(), case.block_tables, *lens, case.spec.scale)
    expected = reference.paged_attention(*arguments, page_mask=shown)[0]
    sees = expected.abs().sum(dim=(1, 2)) > 0
    out = plan.run(case.q, *case.views(), mask)
    torch.testing.assert_close(out.double()[sees], expected[sees], **TOLERANCE)


@pytest.mark.parametrize(
    ("heads", "dim_k", "window"), [(8, 128, 127), (16, 128, 127), (8, 192, -1)]
)
def test_a_captured_decode_follows_new_lengths(device, workspace, heads, dim_k, window) -> None:
    """Plan outside the graph, tables and attention inside; lengths change between replays."""
    kernel = replace(KERNELS["decode on CUDA cores"], qo_heads=heads)
    layout = layout_of(dim=dim_k, dim_v=128)
    case = made(case_spec(kernel, layout=layout, window_left=window), device)
    spec = attention_spec(case)
    plan = GroupPlanner(spec, workspace, 6, 6).decode(6, case.tables, cuda_graph=True)
    batch = case.batch()

    def step() -> torch.Tensor:
        case.builder.build(batch, case.virtual_rows, case.page_table, case.locs)
        return plan.run(case.q, *case.views())

    plan.plan(case.spec.counts())
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for cut in (0, 1, 5):
        shorter = tuple(max(1, n - cut * 50) for n in KV_LENS)
        case.spec = replace(case.spec, kv_lens=shorter)
        batch.kv_lens.copy_(torch.tensor([shorter]))
        plan.plan(case.spec.counts())
        graph.replay()
        assert_right(out, case)


@pytest.mark.parametrize("kind", ["CUDA cores", "tensor cores", "latent rows"])
def test_captured_sizes_share_a_schedule_and_replay_in_any_order(
    device, workspace, is_hopper, kind
) -> None:
    is_latent = kind == "latent rows"
    kernel = Kernel("mla" if is_latent else "", qo_heads=8 if kind == "CUDA cores" else 16)
    of_rows = {"layout": latent_layout(), "latent_dim": 512} if is_latent else {}
    cases = [
        made(case_spec(kernel, kv_lens=KV_LENS[:size], q_lens=(1,) * size, **of_rows), device)
        for size in (6, 3)
    ]
    backend = "fa3" if is_latent and is_hopper else "fa2"
    planner = GroupPlanner(attention_spec(cases[0], backend), workspace, 6, 6)
    replays = []
    for case in cases:
        plan = planner.decode(len(case.q), case.tables, cuda_graph=True)
        plan.plan(case.spec.counts())
        plan.run(case.q, *case.views())
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = plan.run(case.q, *case.views())
        replays.append((plan, graph, out))
    for which in (1, 0, 0, 1):
        plan, graph, out = replays[which]
        plan.plan(cases[which].spec.counts())
        graph.replay()
        assert_right(out, cases[which])


def test_planning_and_running_do_not_wait_for_the_device(device, workspace) -> None:
    kernel = KERNELS["decode on tensor cores"]
    case = made(case_spec(kernel, window_left=127), device)
    plan = GroupPlanner(attention_spec(case), workspace, 6, 6).decode(0, case.tables)
    batch, counts = case.batch(), case.spec.counts()
    plan.plan(counts)
    plan.run(case.q, *case.views())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.builder.build(batch, case.virtual_rows, case.page_table, case.locs)
        plan.plan(counts)
        out = plan.run(case.q, *case.views())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_right(out, case)


def test_a_host_that_runs_ahead_overwrites_no_schedule(device, workspace) -> None:
    """Three steps are planned while the device sleeps; each must run by its own schedule."""
    kernel = KERNELS["decode on tensor cores"]
    specs = [case_spec(kernel, kv_lens=tuple(n + i * 700 for n in KV_LENS)) for i in range(3)]
    cases = [made(spec, device) for spec in specs]
    plan = GroupPlanner(attention_spec(cases[0]), workspace, 6, 6).decode(0, cases[0].tables)
    plan.plan(cases[0].spec.counts())
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    outs = []
    for case in cases:
        plan.tables = case.tables
        plan.plan(case.spec.counts())
        outs.append(plan.run(case.q, *case.views()))
    for out, case in zip(outs, cases, strict=True):
        assert_right(out, case)


def test_a_zeroed_page_is_safe_to_share_with_its_former_owner(device, workspace, kernel) -> None:
    """Tokens before the window that nobody wrote: zero pages keep them out of the result."""
    case = PagedCase(case_spec(kernel, window_left=127), device, BF16)
    case.build()
    every = case.page_table[0].contiguous()
    pages.zero_pages(case.buffer, case.spec.layout.small_page_bytes, every)
    slots = case.tables.slots[0].clone()
    start = 0
    for kv_len, q_len in zip(case.spec.kv_lens, case.spec.q_lens, strict=True):
        slots[start : start + max(0, kv_len - q_len - 127)] = -1
        start += kv_len
    kv_write(case.keys, case.values, *case.page_views(), slots)
    assert_right(run(kernel, case, workspace), case)
