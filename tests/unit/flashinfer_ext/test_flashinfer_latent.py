"""Plans over latent rows against FlashInfer's own wrapper for them: the same module, asked for and
called with the same arguments."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from flashinfer_ext import GroupLayout, page_views
from flashinfer_ext.latent import MOST_TILES, SCHEDULE_BYTES, check_shapes, most_tiles
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.table_spec import GroupTables
from flashinfer_ext.trim import Trim, host_counts

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
KV_LENS, Q_LENS = [30, 1, 40], [3, 1, 7]
MULTIPROCESSORS, SHARED_BYTES = 132, 233472  # of an H100
HOST = torch.device("cpu")
# Positions among the arguments of `plan` and of `run`: places in memory, which are ours.
PLAN_PLACES, RUN_PLACES = range(3), range(2)


def spec_of(**change: Any) -> AttentionSpec:
    fields: dict[str, Any] = {
        "num_qo_heads": 16,
        "num_kv_heads": 1,
        "head_dim_qk": 576,
        "head_dim_vo": 512,
        "entry_tokens": 16,
        "q_dtype": BF16,
        "kv_dtype": BF16,
        "scale": 0.1,
        "is_latent": True,
    }
    return AttentionSpec(**(fields | change))


class Recorder:
    """Stands in for the compiled module; ``infos`` are what its planner returns."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.plans: list[tuple[Any, ...]] = []
        self.runs: list[tuple[Any, ...]] = []
        self.infos: Callable[[], list[int]] = lambda: [2, 66]

    def get(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self

    def build_and_load(self) -> Any:
        return self

    def plan(self, *arguments: Any) -> list[int]:
        self.plans.append(arguments)
        return self.infos()

    def run(self, *arguments: Any) -> None:
        self.runs.append(arguments)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    with warnings.catch_warnings(action="ignore"):
        import flashinfer.jit
        from flashinfer.mla._batch_mla._backends import _fa_common, fa2_backend, fa3_backend
    made = Recorder()
    monkeypatch.setattr(flashinfer.jit, "gen_batch_mla_module", made.get)
    for backend in (fa2_backend, fa3_backend):
        monkeypatch.setattr(backend, "get_batch_mla_module", made.get)
    properties = SimpleNamespace(
        shared_memory_per_multiprocessor=SHARED_BYTES, shared_memory_per_block_optin=SHARED_BYTES
    )
    for name, value in {
        "get_compute_capability": (9, 0),
        "get_device_properties": properties,
        "get_device_sm_count": MULTIPROCESSORS,
        "is_sm90a_supported": True,
    }.items():
        monkeypatch.setattr(_fa_common, name, lambda device, value=value: value)
    plain_empty = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return plain_empty(*args, **kwargs)

    with mock.patch.object(torch, "empty", empty), warnings.catch_warnings(action="ignore"):
        yield made


def tables_of(batch: int) -> GroupTables:
    indices = tuple(torch.arange(batch * 64, dtype=torch.int32) + n for n in range(2))
    zeros = [torch.zeros(batch + n, dtype=torch.int32) for n in (1, 0, 0)]
    return GroupTables(*zeros, indices, (), ())


def planner_of(spec: AttentionSpec) -> GroupPlanner:
    return GroupPlanner(spec, torch.zeros(1 << 12, dtype=torch.uint8), 8, 4096)


def views_of(spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages of a group of three layers, and V as a part of K."""
    payload = 3 * spec.entry_tokens * spec.head_dim_qk * spec.kv_dtype.itemsize
    sizes = (3, spec.entry_tokens, 1, spec.head_dim_qk, 0)
    layout = GroupLayout(*sizes, spec.kv_dtype, payload)
    k, _ = page_views(torch.zeros(5 * payload, dtype=torch.uint8), layout, 1)
    return k, k[..., : spec.head_dim_vo]


def theirs(spec: AttentionSpec, counts: Any, q_lens: list[int], causal: bool, q: Any) -> None:
    """The same batch through FlashInfer's wrapper."""
    from flashinfer.mla import BatchMLAPagedAttentionWrapper, MLAPlanMetadata

    tables, (k, _), ckv = tables_of(8), views_of(spec), spec.head_dim_vo
    offsets = torch.tensor([0, *torch.tensor(q_lens).cumsum(0).tolist()], dtype=torch.int32)
    wrapper = BatchMLAPagedAttentionWrapper(
        torch.zeros(1 << 26, dtype=torch.uint8), backend=spec.backend
    )
    wrapper.plan(
        metadata=MLAPlanMetadata.csr(
            offsets, counts.indptr_cpu, tables.indices[1], counts.kv_lens_cpu
        ),
        num_heads=spec.num_qo_heads,
        head_dim_ckv=ckv,
        head_dim_kpe=spec.head_dim_qk - ckv,
        page_size=spec.entry_tokens,
        causal=causal,
        sm_scale=spec.scale,
        q_data_type=spec.q_dtype,
        kv_data_type=spec.kv_dtype,
        query_layout="split",
        kv_cache_layout="split",
    )
    scales = {"ckv_scale": 2.0, "kpe_scale": 2.0} if spec.kv_dtype == FP8 else {}
    parts = (k.squeeze(2)[..., :ckv], k.squeeze(2)[..., ckv:])
    wrapper.run(query=(q[..., :ckv], q[..., ckv:]), kv_cache=parts, **scales)


def place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What a kernel would read, and where in its pool."""
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def assert_same(ours: tuple[Any, ...], theirs: tuple[Any, ...], but: range) -> None:
    assert len(ours) == len(theirs)
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if position in but:
            continue
        if not isinstance(other, torch.Tensor):
            assert (mine, type(mine)) == (other, type(other)), position
            continue
        assert place_of(mine) == place_of(other), position
        assert mine.dtype != torch.int32 or torch.equal(mine, other), position


@pytest.mark.parametrize("backend", ["fa2", "fa3"])
@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("kv_dtype", [BF16, FP8])
def test_the_module_is_called_as_flashinfer_calls_it(
    recorder: Recorder, backend: str, kind: str, kv_dtype: torch.dtype
) -> None:
    spec = spec_of(backend=backend, kv_dtype=kv_dtype)
    q_lens = [1] * 3 if kind == "decode" else Q_LENS
    counts = host_counts(Trim(16), torch.tensor(KV_LENS), torch.tensor(q_lens))
    planner, tables = planner_of(spec), tables_of(8)
    if kind == "decode":
        plan = planner.decode(3, tables)
        plan.plan(counts)
    else:
        plan = planner.prefill(tables)
        plan.plan(counts, torch.tensor(q_lens))
    q = torch.zeros(sum(q_lens), 16, 576, dtype=BF16)
    out = plan.run(q, *views_of(spec), stripe=1, k_scale=2.0, v_scale=2.0)
    theirs(spec, counts, q_lens, kind == "prefill", q)
    assert out.shape == (len(q), 16, 512)
    assert recorder.asked[0] == recorder.asked[1]
    assert_same(*recorder.plans, but=PLAN_PLACES)
    assert_same(*recorder.runs, but=RUN_PLACES)


def test_captured_sizes_share_one_schedule_and_stay_as_they_were_captured(
    recorder: Recorder,
) -> None:
    planner = planner_of(spec_of())
    plans = [planner.decode(n, tables_of(n), cuda_graph=True) for n in (1, 2, 4)]
    assert len({plan.schedule.data_ptr() for plan in plans}) == 1 and len(recorder.asked) == 1
    eager = planner.decode(0, tables_of(4)), planner.prefill(tables_of(4))
    assert len({plan.schedule.data_ptr() for plan in (*plans, *eager)}) == 3
    counts = host_counts(Trim(16), torch.tensor([5, 6]), torch.ones(2, dtype=torch.int64))
    for _ in range(2):
        plans[1].plan(counts)
    recorder.infos = lambda: [1, 66]
    with pytest.raises(RuntimeError, match=r"planned \[1, 66\] for a graph of \[2, 66\]"):
        plans[1].plan(counts)
    eager[0].plan(counts)


def test_a_batch_that_would_not_fit_the_schedule_is_not_planned(recorder: Recorder) -> None:
    """The module would write behind its arrays."""
    plan = planner_of(spec_of(num_qo_heads=128)).prefill(tables_of(64))
    for rows, fits in ((MOST_TILES - 3, True), (MOST_TILES - 2, False)):
        lengths = torch.tensor([rows])
        counts = host_counts(Trim(16), torch.tensor([1000]), lengths)
        recorder.plans.clear()
        if fits:
            plan.plan(counts, lengths)
            continue
        with pytest.raises(ValueError, match=f"at most {MOST_TILES} tiles, got {rows} queries"):
            plan.plan(counts, lengths)
    assert not recorder.plans


@pytest.mark.parametrize("heads", [1, 8, 16, 128])
@pytest.mark.parametrize("q_lens", [[1] * 200, [8192], [700, 1, 1, 9, 64], [4, 5] * 50])
def test_the_bound_on_tiles_is_above_what_flashinfer_counts(heads: int, q_lens: list[int]) -> None:
    with warnings.catch_warnings(action="ignore"):
        from flashinfer.mla._batch_mla._backends._fa_common import _fa_plan_work_count

    kv_lens = [q * 7 for q in q_lens]
    counted = _fa_plan_work_count(q_lens, kv_lens, heads, MULTIPROCESSORS, True)
    bound = most_tiles(sum(q_lens), len(q_lens), heads, HOST) + MULTIPROCESSORS
    assert counted <= bound


def test_the_schedule_holds_what_flashinfers_planner_reserves() -> None:
    reserved = 9 * MOST_TILES * 4 + 5 * MULTIPROCESSORS * 4
    assert reserved + 14 * 16 <= SCHEDULE_BYTES
    assert planner_of(spec_of()).schedule_bytes == SCHEDULE_BYTES


def test_flashinfer_reserves_as_many_tiles_as_we_take_it_for() -> None:
    """Its header says so; a number that grew would only refuse too much, one that shrank corrupts
    memory."""
    import flashinfer

    folder = Path(flashinfer.__file__).parent
    header = (folder / "data/include/flashinfer/attention/scheduler.cuh").read_text()
    planner = header[header.index("inline cudaError_t MLAPlan(") :]
    assert f"int max_total_num_works = {MOST_TILES};" in planner
    assert planner.count("sizeof(IdType) * max_total_num_works") == 9
    assert planner.count("sizeof(IdType) * num_sm") == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim_qk": 288, "head_dim_vo": 256}, "a second of a multiple of 64"),
        ({"head_dim_qk": 160, "head_dim_vo": 96}, "a first part of a multiple of 128"),
        ({"head_dim_qk": 448, "head_dim_vo": 384, "backend": "fa3"}, "a first part in"),
        ({"kv_dtype": torch.float16}, "expected the queries' torch.bfloat16"),
        ({"kv_dtype": FP8, "head_dim_qk": 320, "head_dim_vo": 256}, "float8_e4m3fn of"),
        ({"kv_dtype": FP8, "q_dtype": torch.float16}, "float8_e4m3fn of"),
        ({"num_qo_heads": 20}, "query heads that divides 128, got 20"),
    ],
)
def test_shapes_without_a_module_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_shapes(spec_of(**change))


@pytest.mark.parametrize("change", [{}, {"num_qo_heads": 128}, {"kv_dtype": FP8}])
def test_shapes_with_one_are_not(change: dict[str, Any]) -> None:
    check_shapes(spec_of(**change))


def test_a_latent_row_has_one_head_one_scale_and_no_window() -> None:
    for change in ({"num_kv_heads": 2}, {"head_dim_qk": 512}):
        with pytest.raises(ValueError, match="V as a part of K"):
            spec_of(**change)
    for change in ({"window_left": 5}, {"soft_cap": 3.0}):
        with pytest.raises(ValueError, match="no window, no soft cap"):
            spec_of(**change)


def test_two_scales_of_one_row_are_refused(recorder: Recorder) -> None:
    plan = planner_of(spec_of(kv_dtype=FP8)).decode(0, tables_of(1))
    q = torch.zeros(1, 16, 576, dtype=BF16)
    with pytest.raises(ValueError, match="a latent row has one scale"):
        plan.run(q, *views_of(spec_of(kv_dtype=FP8)), k_scale=2.0, v_scale=3.0)
