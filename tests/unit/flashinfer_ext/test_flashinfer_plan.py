"""Plans against FlashInfer's own: same wrappers, same planner arguments, modules replaced.

The wrappers are FlashInfer's, on the host. Their compiled modules are recorders, so each planner
call can be compared with what FlashInfer's own `plan` passes for the same batch.
"""

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from flashinfer_ext.plan import AttentionPlan, query_offsets
from flashinfer_ext.plan_spec import AttentionSpec, int_workspace_bytes
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.staging import PinnedRing
from flashinfer_ext.table_spec import GroupTables
from flashinfer_ext.trim import Trim, host_counts
from flashinfer_ext.variants import Variant

MAX_BATCH = 8
PINNED = 2  # position of the pinned buffer among the planner's arguments


class Recorder:
    """Stands in for a compiled module: keeps what it is called with, and what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.plans: list[tuple[Any, ...]] = []
        self.runs: list[tuple[Any, ...]] = []
        self.module = SimpleNamespace(plan=self._plan, run=self._run, paged_run=self._run)

    def _plan(self, *arguments: Any) -> list[int]:
        self.plans.append(arguments)
        return [len(self.plans)]

    def _run(self, *arguments: Any) -> None:
        self.runs.append(arguments)

    def get(self, *arguments: Any) -> Any:
        """In place of the functions that return a module."""
        self.asked.append(arguments)
        return self.module


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    with warnings.catch_warnings(action="ignore"):
        import flashinfer.decode
        import flashinfer.prefill
    made = Recorder()
    plain_empty = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return plain_empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    for place in (flashinfer.decode, flashinfer.prefill):
        for name in ("get_batch_prefill_module", "get_batch_decode_module"):
            monkeypatch.setattr(place, name, made.get, raising=False)
        monkeypatch.setattr(place, "device_support_pdl", lambda device: False)
    monkeypatch.setattr(flashinfer.prefill, "get_customize_batch_prefill_module", lambda *a, **k: 0)
    monkeypatch.setattr(
        flashinfer.prefill, "get_batch_prefill_jit_module", lambda *args: made.module
    )
    yield made


def spec_of(**change: Any) -> AttentionSpec:
    fields: dict[str, Any] = {
        "num_qo_heads": 8,
        "num_kv_heads": 4,
        "head_dim_qk": 128,
        "head_dim_vo": 128,
        "entry_tokens": 16,
        "q_dtype": torch.bfloat16,
        "kv_dtype": torch.bfloat16,
        "scale": 0.1,
    }
    return AttentionSpec(**(fields | change))


def tables_of(batch: int, stripes: int = 2) -> GroupTables:
    """Buffers as the table builder hands them out."""
    ints: Callable[[int], torch.Tensor] = lambda n: torch.zeros(n, dtype=torch.int32)  # noqa: E731
    indices = tuple(ints(batch * 64) for _ in range(stripes))
    return GroupTables(ints(batch + 1), ints(batch), ints(batch), indices, (), ())


def planner_of(spec: AttentionSpec) -> GroupPlanner:
    return GroupPlanner(spec, torch.zeros(1 << 12, dtype=torch.uint8), MAX_BATCH, 4096)


def equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        return bool(ours.dtype == theirs.dtype and torch.equal(ours, theirs))
    return bool(ours == theirs and type(ours) is type(theirs))


def assert_same_arguments(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    assert len(ours) == len(theirs)
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert position == PINNED or equal(mine, other), f"argument {position}: {mine}, {other}"


def plan_twice(plan: AttentionPlan, counts: Any, q_lens: torch.Tensor | None) -> None:
    """The first plan is FlashInfer's own, the second ours."""
    plan.plan(counts, q_lens)
    plan.plan(counts, q_lens)


CASES = {
    "cuda cores": ({}, "decode"),
    "cuda cores, window": ({"window_left": 100, "soft_cap": 30.0}, "decode"),
    "tensor cores": ({"num_qo_heads": 16}, "decode"),
    "tensor cores, fp8": ({"kv_dtype": torch.float8_e4m3fn, "window_left": 5}, "decode"),
    "row view": ({"entry_tokens": 1}, "decode"),
    "prefill": ({"window_left": 33}, "prefill"),
    "prefill, unequal head dims": ({"head_dim_qk": 192}, "prefill"),
    "prefill, FA3": ({"backend": "fa3"}, "prefill"),
    "prefill, cross-attention": ({"causal": False}, "prefill"),
}


@pytest.mark.parametrize("case", CASES)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_the_module_is_called_as_flashinfer_calls_it(
    recorder: Recorder, case: str, data: st.DataObject
) -> None:
    change, kind = CASES[case]
    spec = spec_of(**change)
    kv_lens = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=MAX_BATCH))
    q_lens = None
    if kind == "prefill":
        # In cross-attention there may be more queries than keys.
        lengths = [data.draw(st.integers(1, n if spec.causal else 300)) for n in kv_lens]
        q_lens = torch.tensor(lengths, dtype=torch.int32)
    batch = torch.tensor(kv_lens, dtype=torch.int32)
    trim = Trim(spec.entry_tokens, spec.window_left)
    counts = host_counts(trim, batch, torch.ones_like(batch) if q_lens is None else q_lens)
    tables = tables_of(len(kv_lens) * (16 if spec.entry_tokens == 1 else 1))
    planner = planner_of(spec)
    plan = planner.decode(0, tables) if q_lens is None else planner.prefill(tables)
    plan_twice(plan, counts, q_lens)
    theirs, ours = recorder.plans[-2:]
    assert_same_arguments(ours, theirs)
    assert ours[PINNED].data_ptr() != theirs[PINNED].data_ptr()


@pytest.mark.parametrize("heads", [8, 16])
def test_a_captured_decode_is_planned_as_flashinfer_plans_it(
    recorder: Recorder, heads: int
) -> None:
    tables = tables_of(3)
    plan = planner_of(spec_of(num_qo_heads=heads)).decode(3, tables, cuda_graph=True)
    counts = host_counts(Trim(16), torch.tensor([5, 16, 99]), torch.ones(3, dtype=torch.int64))
    plan_twice(plan, counts, None)
    theirs, ours = recorder.plans
    assert_same_arguments(ours, theirs)
    assert ours[8 if heads == 8 else 11] is True, "CUDA graphs are on"


@pytest.mark.parametrize("in_graph", [False, True])
def test_unequal_head_dims_decode_in_a_module_built_for_both(
    recorder: Recorder, in_graph: bool
) -> None:
    """A kernel of 192 for V rows of 128 writes past the output's end."""
    plan = planner_of(spec_of(head_dim_qk=192)).decode(3, tables_of(3), cuda_graph=in_graph)
    counts = host_counts(Trim(16), torch.tensor([5, 16, 99]), torch.ones(3, dtype=torch.int64))
    plan_twice(plan, counts, None)
    assert all(asked[5:7] == (192, 128) for asked in recorder.asked) and recorder.asked
    assert_same_arguments(*reversed(recorder.plans))
    q = torch.zeros(3, 8, 192, dtype=torch.bfloat16)
    caches = (torch.zeros(4, 16, 4, dim, dtype=torch.bfloat16) for dim in (192, 128))
    assert plan.run(q, *caches).shape == (3, 8, 128)


def test_captured_batch_sizes_share_one_schedule_and_eager_plans_do_not(
    recorder: Recorder,
) -> None:
    planner = planner_of(spec_of())
    plans = [planner.decode(n, tables_of(n), cuda_graph=True) for n in (1, 2, 4)]
    schedules = {plan.wrapper._int_workspace_buffer.data_ptr() for plan in plans}
    assert len(schedules) == 1 and len({id(plan.wrapper) for plan in plans}) == 3
    eager = planner.decode(0, tables_of(4)), planner.prefill(tables_of(4))
    schedules |= {plan.wrapper._int_workspace_buffer.data_ptr() for plan in eager}
    assert len(schedules) == 3
    assert planner.decode(2, tables_of(2), cuda_graph=True) is plans[1]


def test_a_run_reads_the_tables_of_the_builder_and_of_its_stripe(recorder: Recorder) -> None:
    spec = spec_of(num_qo_heads=16, window_left=40)
    tables = tables_of(2)
    plan = planner_of(spec).decode(0, tables)
    counts = host_counts(Trim(16, 40), torch.tensor([50, 100]), torch.tensor([1, 1]))
    plan.plan(counts)
    q = torch.zeros(2, 16, 128, dtype=torch.bfloat16)
    cache = torch.zeros(4, 16, 4, 128, dtype=torch.bfloat16)
    plan.run(q, cache, cache, stripe=1)
    arguments = recorder.runs[-1]
    pointers = {t.data_ptr() for t in arguments if isinstance(t, torch.Tensor)}
    assert tables.indices[1].data_ptr() in pointers
    assert tables.indices[0].data_ptr() not in pointers
    assert {tables.indptr.data_ptr(), tables.last_page_len.data_ptr()} <= pointers
    offsets = next(t for t in arguments if isinstance(t, torch.Tensor) and t.shape == (3,))
    assert offsets.tolist() == [0, 1, 2]
    assert 40 in [a for a in arguments if not isinstance(a, torch.Tensor)]


def test_a_prefill_gets_its_query_offsets_on_the_device(recorder: Recorder) -> None:
    plan = planner_of(spec_of()).prefill(tables_of(4))
    q_lens = torch.tensor([3, 1, 7])
    counts = host_counts(Trim(16), torch.tensor([30, 1, 40]), q_lens)
    plan_twice(plan, counts, q_lens)
    assert plan.wrapper._qo_indptr_buf.tolist() == [0, 3, 4, 11]
    assert plan.wrapper._qo_indptr_last == 11


def test_rows_are_given_to_flashinfer_as_pages_of_one_token(recorder: Recorder) -> None:
    plan = planner_of(spec_of(entry_tokens=1)).decode(0, tables_of(64))
    plan.plan(host_counts(Trim(1), torch.tensor([50]), torch.tensor([1])))
    cache = torch.zeros(300, 4, 128, dtype=torch.bfloat16)
    plan.run(torch.zeros(1, 8, 128, dtype=torch.bfloat16), cache, cache)
    shapes = [tuple(t.shape) for t in recorder.runs[-1] if isinstance(t, torch.Tensor)]
    assert shapes.count((300, 1, 4, 128)) == 2


def test_a_sink_variant_decodes_through_the_prefill_wrapper(recorder: Recorder) -> None:
    variant = Variant("sink", torch.bfloat16, torch.bfloat16, 64, 64, window=True)
    spec = spec_of(head_dim_qk=64, head_dim_vo=64, window_left=127, variant=variant)
    plan = planner_of(spec).decode(2, tables_of(2), cuda_graph=True)
    counts = host_counts(Trim(16, 127), torch.tensor([500, 3]), torch.tensor([1, 1]))
    plan_twice(plan, counts, None)
    assert_same_arguments(*reversed(recorder.plans))
    q = torch.zeros(2, 8, 64, dtype=torch.bfloat16)
    cache = torch.zeros(4, 16, 4, 64, dtype=torch.bfloat16)
    sink = torch.arange(8.0)
    plan.run(q, cache, cache, sink)
    assert any(isinstance(t, torch.Tensor) and t is sink for t in recorder.runs[-1])
    assert recorder.runs[-1][-1] == pytest.approx(0.1), "the scale comes last"


class FakeEvent:
    """An event of a device that runs only when told to."""

    made: list["FakeEvent"]

    def __init__(self) -> None:
        self.done = True
        FakeEvent.made.append(self)

    def record(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


def test_a_pinned_buffer_is_not_written_before_its_copy_has_run() -> None:
    FakeEvent.made = []
    ring = PinnedRing(8, 3, torch.device("cpu"), FakeEvent)
    addresses = []
    for _ in range(3):
        with ring.buffer() as pinned:
            addresses.append(pinned.data_ptr())
    assert len(set(addresses)) == 3 and ring.waits == 0
    FakeEvent.made[0].done = True
    with ring.buffer() as pinned:
        assert pinned.data_ptr() == addresses[0]
    assert ring.waits == 0, "its copy had run"
    with ring.buffer() as pinned:
        assert pinned.data_ptr() == addresses[1]
    assert ring.waits == 1, "its copy had not"


def test_wrong_batches_are_refused(recorder: Recorder) -> None:
    planner = planner_of(spec_of())
    counts = host_counts(Trim(16), torch.tensor([5, 6]), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="batch: expected exactly 3 requests, got 2"):
        planner.decode(3, tables_of(3), cuda_graph=True).plan(counts)
    with pytest.raises(ValueError, match="batch: expected at most 1 requests, got 2"):
        planner.decode(0, tables_of(1)).plan(counts)
    with pytest.raises(ValueError, match=r"q_lens_cpu: expected \(2,\) on the host"):
        query_offsets(2, torch.ones(3))
    long = host_counts(Trim(16), torch.tensor([2000]), torch.tensor([1]))
    with pytest.raises(ValueError, match="entries: expected at most 64, got 125"):
        planner.decode(0, tables_of(1)).plan(long)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_qo_heads": 6}, "expected a multiple of 4, got 6"),
        ({"backend": "auto"}, "backend: expected"),
        ({"head_dim_qk": 64}, "variant: expected dtypes and head dims"),
        ({"window_left": 3}, "variant: expected window True on fa2"),
        ({"soft_cap": 3.0}, "variant: expected no soft cap"),
    ],
)
def test_specs_that_no_module_serves_are_refused(change: dict[str, Any], message: str) -> None:
    variant = Variant("page_mask", torch.bfloat16, torch.bfloat16, 128, 128, window=False)
    with pytest.raises(ValueError, match=message):
        spec_of(variant=variant, **change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"num_qo_heads": 16}, True),
        ({"num_qo_heads": 20}, True),
        ({"kv_dtype": torch.float8_e4m3fn}, True),
        ({"head_dim_qk": 96, "head_dim_vo": 96}, True),
        ({"head_dim_vo": 64}, True),
    ],
)
def test_decode_takes_tensor_cores_where_it_must(change: dict[str, Any], expected: bool) -> None:
    assert spec_of(**change).decodes_on_tensor_cores is expected


def test_schedules_are_far_smaller_than_flashinfers_8_mib() -> None:
    assert int_workspace_bytes(256, 256, 32) < 1 << 20
    assert int_workspace_bytes(256, 8192, 32) < 2 << 20


def test_xqa_is_given_the_trimmed_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings(action="ignore"):
        import flashinfer.decode
    from flashinfer_ext.xqa import SEMAPHORE_BYTES, XqaDecode

    seen: dict[str, Any] = {}

    def fake(q: torch.Tensor, caches: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.update(options, arguments=arguments)
        return q

    monkeypatch.setattr(flashinfer.decode, "xqa_batch_decode_with_kv_cache", fake)
    blocks = torch.arange(6, dtype=torch.int32).view(2, 3)
    lens = torch.tensor([40, 7], dtype=torch.int32)
    tables = GroupTables(lens, lens, lens, (), (blocks,), ())
    decode = XqaDecode(spec_of(window_left=30), torch.zeros(SEMAPHORE_BYTES + 1, dtype=torch.uint8))
    q = torch.zeros(2, 8, 128)
    decode.run(q, q, q, tables, k_scale=2.0, v_scale=3.0)
    _, given_blocks, given_lens, longest = seen["arguments"]
    assert given_blocks is blocks and longest == 3 * 16
    assert given_lens.dtype == torch.uint32 and given_lens.tolist() == [40, 7]
    assert (seen["bmm1_scale"], seen["bmm2_scale"], seen["window_left"]) == (0.2, 3.0, 30)
    with pytest.raises(ValueError, match="soft_cap: expected 0"):
        XqaDecode(spec_of(soft_cap=1.0), decode.workspace)
    with pytest.raises(ValueError, match="pages of several tokens"):
        XqaDecode(spec_of(entry_tokens=1), decode.workspace)
    with pytest.raises(ValueError, match="workspace: expected more than"):
        XqaDecode(spec_of(), decode.workspace[1:])
