"""Each backend against `jenga_torch`, which reads the page tables on the host: same outputs of
every layer, same bytes in the pool, in every kind of batch SGLang makes."""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import core_inspector as inside
import pytest
import torch
from backend_bench import Bench, Model, Pair
from drafting_bench import DraftingPair, TwoModels, drafting_batch, verified_batch
from fa3_on_host import flash_attn_with_kvcache
from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from flashinfer_ext import variants
from flashinfer_ext.host_modules import Host, flashinfer_on_host
from flashinfer_ext.modules import gpu_test_modules
from jenga_sglang import draft_flags
from jenga_sglang.adapter.attention import fa3_backend, flashinfer_backend, triton_backend
from jenga_sglang.adapter.attention.fa3_backend import JengaFA3Backend
from jenga_sglang.adapter.attention.flashinfer_backend import JengaFlashInferBackend
from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend
from jenga_sglang.adapter.whole_images import IMAGES, WholeImages

EXTEND, DECODE = ForwardMode.EXTEND, ForwardMode.DECODE
GRAPH_BATCH = 4

MODELS = {
    "windows": Model(("window 9", "full", "window 9", "window 21")),
    "soft cap": Model(("window 9", "full"), soft_cap=3.0),
    "sinks": Model(("window 9", "full", "window 9"), has_sinks=True),
    "chunks": Model(("chunk", "full", "chunk"), chunk=16),
    "shared KV": Model(("window 9", "again", "full", "again")),
    "cross": Model(("full", "cross", "full", "cross")),
    "cross, windows and a soft cap": Model(("window 9", "cross", "full"), soft_cap=3.0),
    "cross and chunks": Model(("chunk", "cross", "full"), chunk=16),
}
# Twice as many layers that forget as others: they take two stripes.
PASSING = [
    ("window 9", "full", "window 9", "window 9", "full", "window 9"),
    ("chunk", "chunk", "full", "full", "chunk", "chunk"),
    ("window 9", "again", "full", "window 9"),
]
LATENT = {
    "latent rows": Model(("full", "full", "full"), dim=24, is_latent=True),
    "latent rows read once": Model(("full",), dim=288, dim_v=256, is_latent=True),
}

# Empty splits of SGLang's decode kernel subtract infinities, and lanes that are masked overflow.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = SimpleNamespace(chunked_prefill_size=64, max_prefill_tokens=64)
    monkeypatch.setattr(flashinfer_backend, "get_schedule", lambda: schedule)
    monkeypatch.setattr(flashinfer_backend, "max_prefill_buffer_tokens", lambda: 64)
    monkeypatch.setattr(flashinfer_backend, "get_cuda_graph_max_batch_size", lambda size: size)
    # The kernels want half precision and whole cache lines; the reference does not.
    for of_gpus in (JengaFlashInferBackend, JengaFA3Backend):
        monkeypatch.setattr(of_gpus, "kernels", lambda self, group: ())
    monkeypatch.setattr(fa3_backend, "load_kernel", lambda: flash_attn_with_kvcache)
    monkeypatch.setitem(variants.DTYPE_NAMES, torch.float32, "f32")
    execution = SimpleNamespace(kernel=SimpleNamespace(triton_attention_num_kv_splits=2))
    monkeypatch.setattr(triton_backend, "get_exec", lambda: execution)


@pytest.fixture
def host(settings: None) -> Iterator[Host]:
    with flashinfer_on_host() as made:
        yield made


BACKENDS = {
    "flashinfer": JengaFlashInferBackend,
    "fa3": JengaFA3Backend,
    "triton": JengaTritonBackend,
}


@pytest.fixture(params=["flashinfer", "flashinfer with XQA", "fa3", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, host: Host) -> Any:
    if request.param == "flashinfer with XQA":
        monkeypatch.setenv(flashinfer_backend.DECODE_VARIABLE, "xqa")
    return BACKENDS.get(request.param, JengaFlashInferBackend)


def skip_what_xqa_lacks(model: Model, backend: Any) -> None:
    is_xqa = flashinfer_backend.Kernels.from_environment().decode == "xqa"
    if is_xqa and backend is JengaFlashInferBackend and model.soft_cap:
        pytest.skip("XQA has no soft cap")


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_batch(name: str, backend: Any) -> None:
    model = MODELS[name]
    skip_what_xqa_lacks(model, backend)
    pair = Pair.of(model, backend)
    pair.serve()


@pytest.mark.parametrize("layers", PASSING)
def test_pages_that_pass_give_what_pages_of_their_own_give(
    layers: tuple[str, ...], backend: Any
) -> None:
    """And what was in them is NaN when the next step runs."""
    pair = Pair.with_and_without_passing(Model(layers, chunk=16), backend)
    assert max(inside.stripes(pair.checked.manager)) > 1
    pair.serve()
    assert pair.checked.passing_pages > 10
    pair.each(lambda bench: bench.start(4))
    pair.step(EXTEND, {4: 100, 2: 1})
    pair.step(EXTEND, {4: 70, 1: 1})
    pair.step(DECODE, {4: 1, 1: 1})


@pytest.mark.parametrize("in_full_layers", [True, False])
def test_images_that_are_seen_whole(in_full_layers: bool, host: Host) -> None:
    """Longer than windows and blocks of queries, beside prompts without any, one begun before."""
    pair = Pair.of(replace(MODELS["windows"], layers=("window 9", "full")), JengaTritonBackend)
    how = WholeImages(in_full_layers, IMAGES)
    for bench in (pair.expected, pair.checked):
        bench.pool.whole_images = how
        bench.images = {3: [(5, 24), (33, 36), (40, 59)], 5: [(0, 17)], 4: [(3, 178)]}
    pair.serve()
    pair.each(lambda bench: bench.finish(1))
    pair.each(lambda bench: bench.start(4))
    pair.step(EXTEND, {4: 180})


@pytest.mark.parametrize("backend", [JengaFlashInferBackend, JengaFA3Backend])
def test_without_a_mask_images_are_seen_as_text(
    backend: Any, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    def told(runner: Any) -> Any:
        runner.token_to_kv_pool.whole_images = WholeImages(True, IMAGES)
        return backend(runner)

    bench = Bench(MODELS["windows"], told)
    assert bench.pool.whole_images is None
    assert f"see those before them only with --attention-backend {backend.name}" in caplog.text


@pytest.mark.parametrize("name", MODELS)
def test_a_captured_decode_follows_lengths_pages_and_padding(name: str, backend: Any) -> None:
    model = MODELS[name]
    skip_what_xqa_lacks(model, backend)
    captured_decodes(model, backend)


def captured_decodes(model: Model, backend: Any, tolerance: float = 1e-5) -> None:
    """Serve decodes in the tensors that a graph was captured with, against plain torch."""
    pair = Pair.of(model, backend, tolerance=tolerance)
    ours = pair.checked
    ours.backend.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH)
    warm_up = ours.batch(DECODE, {}, padding=GRAPH_BATCH)
    before = ours.pool.buffer.clone()
    ours.backend.init_forward_metadata_out_graph(warm_up, in_capture=True)
    ours.run(warm_up, pair.inputs(GRAPH_BATCH))
    assert torch.equal(before, ours.pool.buffer), "padding was written"
    addresses = graph_addresses(ours)
    pair.serve_captured(GRAPH_BATCH, ours.run)
    assert graph_addresses(ours) == addresses, "a graph would read what is no longer written"
    # A rank of data-parallel attention without requests replays padding alone.
    before = ours.pool.buffer.clone()
    idle = ours.batch(DECODE, {}, padding=GRAPH_BATCH)
    ours.backend.init_forward_metadata_out_graph(idle)
    outs = ours.run(idle, pair.inputs(GRAPH_BATCH))
    assert all(out.isfinite().all() for out in outs)
    assert torch.equal(before, ours.pool.buffer), "padding was written"


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("cross")])
def test_a_rank_whose_batches_are_padded_to_anothers(name: str, backend: Any) -> None:
    model = MODELS[name]
    skip_what_xqa_lacks(model, backend)
    Pair.of(model, backend).serve_padded()


@pytest.mark.parametrize("of", BACKENDS)
@pytest.mark.parametrize("name", LATENT)
def test_latent_rows(name: str, of: str, host: Host) -> None:
    Pair.of(LATENT[name], BACKENDS[of], tolerance=1e-4).serve()
    captured_decodes(LATENT[name], BACKENDS[of], tolerance=1e-4)


@pytest.mark.parametrize("of", ["fa3", "flashinfer"])
def test_latent_queries_and_rows_come_in_two_parts(of: str, host: Host) -> None:
    """As SGLang's DeepSeek layers give them to a backend of that name."""
    bench = Bench(LATENT["latent rows"], BACKENDS[of])
    bench.start(1)
    bench.grow(1, 6)
    batch = bench.batch(EXTEND, {1: 6})
    whole = Pair.of(LATENT["latent rows"], BACKENDS[of]).inputs(6)[0]
    layer, outs = bench.layers[0], []
    bench.backend.init_forward_metadata(batch)
    q = whole.q.view(6, -1, 24)
    parts = [q[..., :16].reshape(6, -1), whole.k[..., :16], whole.v]
    rope = {"q_rope": q[..., 16:], "k_rope": whole.k[..., 16:]}
    for given, named in ((parts, rope), ([whole.q, whole.k, whole.v], {})):
        outs.append(bench.backend.forward_extend(*given, layer, batch, True, **named))
    assert torch.equal(*outs) and outs[0].any()


def test_fa3_refuses_fp8() -> None:
    line = refusal(Model(("full",), store_dtype=torch.float8_e4m3fn).on_gpu(), JengaFA3Backend)
    assert (
        "not torch.float8_e4m3fn" in line
        and "choose --attention-backend flashinfer, triton or jenga_torch" in line
    )


def test_fa3_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sgl_kernel", None)
    with pytest.raises(SystemExit, match="--attention-backend fa3: needs sgl_kernel"):
        fa3_backend.load_kernel()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    with pytest.raises(SystemExit, match="this one has 10; choose flashinfer or triton"):
        fa3_backend.check_gpu()


@pytest.mark.parametrize(("store", "scales"), [("float8_e4m3fn", (4.0, 4.0)), ("float32", (1, 1))])
def test_v_of_a_latent_row_has_ks_scale(
    store: str, scales: tuple[float, float], host: Host
) -> None:
    """V is a part of what was stored as K."""
    dtype = getattr(torch, store)
    model = Model(("full",), dim=32, is_latent=True, store_dtype=dtype, scale=4.0)
    backend = Bench(model, JengaTritonBackend).backend
    (layer,) = backend.layers[0]
    layer.v_scale_float = 3.0
    assert backend.descales(layer) == scales


def refusal(model: Model, backend: Any = JengaFlashInferBackend) -> str:
    """The one line with which the backend refuses to start."""
    said: list[str] = []

    def refused(runner: Any) -> Any:
        with pytest.raises(SystemExit) as stop:
            backend(runner)
        said.append(str(stop.value))

    Bench(model, refused)
    return said[0]


def latent_on_gpu(dim: int, dim_v: int) -> Model:
    return replace(Model(("full",), is_latent=True).on_gpu(dim), dim_v=dim_v)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (latent_on_gpu(288, 256), "a multiple of 128 and a second of a multiple of 64, got 256"),
        (replace(latent_on_gpu(576, 512), layers=("window 9",)), "no window, no soft cap"),
        (replace(latent_on_gpu(576, 512), soft_cap=3.0), "no window, no soft cap"),
        (
            replace(latent_on_gpu(320, 256), store_dtype=torch.float8_e4m3fn),
            "float8_e4m3fn of (512, 64) beside bfloat16",
        ),
    ],
)
def test_latent_rows_that_flashinfer_has_no_kernel_for_are_refused(model: Model, line: str) -> None:
    said = refusal(model)
    assert "--attention-backend flashinfer: cannot serve the layer group" in said and line in said
    assert "choose --attention-backend triton" in said


def test_xqa_reads_no_latent_rows(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flashinfer_backend.DECODE_VARIABLE, "xqa")
    assert "XQA reads no latent rows: leave out JENGA_DECODE_KERNEL" in refusal(
        LATENT["latent rows"]
    )


def test_a_batch_larger_than_a_plan_over_latent_rows_is_refused_at_the_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer's planner would write behind its arrays."""
    schedule = SimpleNamespace(chunked_prefill_size=1 << 19, max_prefill_tokens=64)
    monkeypatch.setattr(flashinfer_backend, "get_schedule", lambda: schedule)
    assert "lower --chunked-prefill-size" in refusal(LATENT["latent rows"])
    schedule.chunked_prefill_size = 1 << 18
    Bench(LATENT["latent rows"], JengaFlashInferBackend)


@pytest.mark.parametrize(
    ("major", "setting", "kernel"), [(9, "auto", "fa3"), (9, "fa2", "fa2"), (8, "auto", "fa2")]
)
def test_hopper_reads_latent_rows_by_fa3(
    major: int, setting: str, kernel: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flashinfer_backend, "device_major", lambda: major)
    monkeypatch.setenv(flashinfer_backend.PREFILL_VARIABLE, setting)
    pair = Pair.of(replace(LATENT["latent rows"], dim=136, dim_v=128), JengaFlashInferBackend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 9})
    pair.step(DECODE, {1: 1})
    assert {spec.backend for _, spec in pair.checked.backend._planners} == {kernel}


@pytest.mark.parametrize("scale", [None, 4.0])
def test_fp8_latent_rows(scale: float | None, host: Host) -> None:
    model = replace(LATENT["latent rows"], dim=32, store_dtype=torch.float8_e4m3fn, scale=scale)
    pair = Pair.of(model, JengaFlashInferBackend, tolerance=1e-4)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    pair.step(DECODE, {1: 1})


def test_layers_over_what_rows_expand_to_are_none_of_the_pools(host: Host) -> None:
    """SGLang's DeepSeek layers have one of each kind, of the same number."""

    def with_expanded(runner: Any) -> Any:
        expanded = Model(("full", "full", "full")).modules()
        runner.model = torch.nn.ModuleList([*runner.model, *expanded])
        return JengaTritonBackend(runner)

    backend = Bench(LATENT["latent rows"], with_expanded).backend
    assert [layer.qk_head_dim for layer in backend.layers[0]] == [24] * 3


@pytest.fixture
def drafter(backend: Any) -> Any:
    """A backend that serves drafts."""
    if backend.name not in draft_flags.ALGORITHMS:
        pytest.skip("drafts are refused")
    return backend


DRAFTING = [name for name in MODELS if not name.startswith("cross")]


@pytest.mark.parametrize("name", DRAFTING)
def test_chains_of_drafts(name: str, drafter: Any) -> None:
    model = MODELS[name]
    skip_what_xqa_lacks(model, drafter)
    chains_of_drafts(model, drafter, 3)


def test_chains_longer_than_pages_windows_and_chunks(host: Host) -> None:
    chains_of_drafts(MODELS["windows"], JengaFlashInferBackend, 18)
    chains_of_drafts(MODELS["chunks"], JengaFlashInferBackend, 18)


@pytest.mark.parametrize("backend", [JengaFlashInferBackend, JengaTritonBackend])
def test_chains_over_latent_rows(backend: Any, host: Host) -> None:
    chains_of_drafts(LATENT["latent rows"], backend, 3, tolerance=1e-4)


def chains_of_drafts(model: Model, backend: Any, steps: int, tolerance: float = 1e-5) -> None:
    """Drafted, verified and accepted, from none to all; pages change hands between."""
    pair = DraftingPair.drafting(model, backend, steps, tolerance)
    pair.begin({3: 30, 1: 1})
    pair.round({3: 0, 1: steps})
    pair.each(lambda bench: bench.finish(3))
    pair.begin({2: 40})
    pair.round({1: 1, 2: 2})
    pair.round({2: steps})


@pytest.mark.parametrize("name", DRAFTING)
def test_captured_chains_of_drafts_follow_lengths_pages_and_padding(
    name: str, drafter: Any
) -> None:
    model = MODELS[name]
    skip_what_xqa_lacks(model, drafter)
    pair = DraftingPair.drafting(model, drafter, 2)
    ours, tokens = pair.checked, pair.steps + 1
    ours.backend.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH * tokens)
    pair.checked_steps.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH)
    before = ours.pool.buffer.clone()
    warm_up = verified_batch(ours, [], tokens, GRAPH_BATCH)
    ours.backend.init_forward_metadata_out_graph(warm_up, in_capture=True)
    ours.run(warm_up, pair.inputs(GRAPH_BATCH * tokens))
    warm_up = drafting_batch(ours, [], pair.steps, GRAPH_BATCH)
    pair.checked_steps.init_forward_metadata_out_graph(warm_up, in_capture=True)
    for step in pair.checked_steps.attn_backends:
        pair.run_on(ours, step, warm_up, pair.inputs(GRAPH_BATCH))
    assert torch.equal(before, ours.pool.buffer), "padding was written"
    captured = [ours.backend, *pair.checked_steps.attn_backends]
    plans = [plan for backend in captured for plan in getattr(backend, "_plans", {}).values()]
    assert all(plan.wrapper.is_cuda_graph_enabled for plan in plans)
    addresses = [addresses_of(backend) for backend in captured]
    pair.begin({1: 14, 4: 33})
    pair.round({4: 0, 1: 2}, padding=GRAPH_BATCH - 2)
    pair.each(lambda bench: bench.finish(1))
    pair.begin({6: 20})
    pair.round({6: 1, 4: 2}, padding=GRAPH_BATCH - 2)
    pair.draft([6, 4], padding=GRAPH_BATCH - 2)
    pair.verify([6, 4], padding=GRAPH_BATCH - 2)
    assert [addresses_of(backend) for backend in captured] == addresses


def test_all_backends_of_a_pool_have_one_copy_of_its_tables_and_one_workspace(
    drafter: Any,
) -> None:
    pair = DraftingPair.drafting(MODELS["windows"], drafter, 4)
    backends = [pair.checked.backend, *pair.checked_steps.attn_backends]
    assert len(backends) == 4
    assert len({id(b._shared) for b in backends}) == 1
    assert len({b._workspace.data_ptr() for b in backends if hasattr(b, "_workspace")}) <= 1
    other = Bench(MODELS["windows"], drafter)
    assert other.backend._shared is not pair.checked.backend._shared


def test_layers_of_two_models_in_the_same_groups(backend: Any) -> None:
    """Each backend has tables of its own layers' stripes, out of the one copy."""
    model = Model(("window 9", "full", "window 9", "full", "full"))
    pair = Pair.of(model, lambda runner: TwoModels(backend, runner, first=(0, 1, 3)))
    pair.serve()
    target, draft = pair.checked.backend.backends
    stripes = [sum(map(len, b._stripes.values())) for b in (target, draft)]
    assert stripes == [3, 2] and sum(inside.stripes(pair.checked.manager)) == 5


def test_a_batch_of_another_width_than_the_graphs_is_refused(drafter: Any) -> None:
    pair = DraftingPair.drafting(MODELS["windows"], drafter, 3)
    pair.checked.backend.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH * 4)
    batch = verified_batch(pair.checked, [], 5, GRAPH_BATCH)
    with pytest.raises(ValueError, match="a step in a CUDA graph"):
        pair.checked.backend.init_forward_metadata_out_graph(batch)
    with pytest.raises(ValueError, match="expected tokens of 3 requests, got 10"):
        pair.checked.backend.init_cuda_graph_state(3, 10)


def test_the_mask_of_drafts_is_small_and_there_only_where_drafts_are(host: Host) -> None:
    tail = 12
    backend = Bench(replace(MODELS["windows"], tail_tokens=tail), JengaTritonBackend).backend
    mask = backend.verify_mask
    assert mask is backend.verify_mask and not mask.is_read
    assert mask.fits(backend.max_batch) and mask.buffer.numel() == backend.max_batch * tail**2
    assert Bench(MODELS["windows"], JengaTritonBackend).backend.verify_mask is None


def graph_addresses(bench: Bench) -> list[int]:
    """Where the kernels of a captured decode read and write."""
    return addresses_of(bench.backend)


def addresses_of(backend: Any) -> list[int]:
    step = backend._step
    tensors = []
    for of_group in step.groups.values():
        tables = of_group.tables
        tensors += [tables.indptr, tables.kv_lens, tables.last_page_len]
        tensors += [*tables.indices, *tables.block_tables, *tables.slots]
    for plan in getattr(backend, "_plans", {}).values():
        if plan.kind == "latent":
            tensors.append(plan.schedule)
            continue
        wrapper = plan.wrapper
        tensors += [wrapper._paged_kv_indptr_buf, wrapper._paged_kv_last_page_len_buf]
        tensors += [wrapper._int_workspace_buffer]
        if plan.kind == "prefill":
            tensors += [wrapper._qo_indptr_buf]
    if not step.is_decode:
        tensors += [offsets for offsets, _ in getattr(backend, "_q_offsets", {}).values()]
    return [tensor.data_ptr() for tensor in tensors]


def gpu_models() -> dict[str, Model]:
    """Those of `tests/gpu`, in a dtype of the same size that Triton's interpreter has."""
    path = Path(__file__).parents[3] / "gpu" / "test_gpu_backends.py"
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def of_interpreter(model: Model) -> Model:
        is_fp8 = model.store_dtype.itemsize == 1
        store = model.store_dtype if is_fp8 else torch.float16
        return replace(model, dtype=torch.float16, store_dtype=store)

    return {name: of_interpreter(model) for name, model in module.MODELS.items()}


def jit_names(asked: set[tuple[Any, ...]]) -> set[str]:
    """Names of the modules that FlashInfer would look for in bf16."""
    with warnings.catch_warnings(action="ignore"):
        from flashinfer import jit
        from flashinfer.jit import xqa
        from flashinfer.jit.attention import modules
    in_bf16 = {torch.float16: torch.bfloat16}
    names = set()
    for generator, *given in asked:
        args = [in_bf16.get(x, x) if isinstance(x, torch.dtype) else x for x in given]
        if generator == "gen_customize_batch_prefill_module":
            names.add(args[1].replace("f16", "bf16"))
            continue
        places = [place for place in (modules, xqa, jit) if hasattr(place, generator)]
        names.add(getattr(places[0], generator)(*args).name)
    return names


@pytest.mark.parametrize("kernels", ["default", "XQA"])
def test_the_kit_has_what_the_backends_ask_for_on_hopper(
    kernels: str, settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is missing there nobody can compile in the half hour that the device is at hand."""
    monkeypatch.setattr(flashinfer_backend, "device_major", lambda: 9)
    models = gpu_models()
    if kernels == "XQA":
        monkeypatch.setenv(flashinfer_backend.DECODE_VARIABLE, "xqa")
        models = {"windows": models["windows"]}
    with flashinfer_on_host() as host:
        for model in models.values():
            pair = Pair.of(model, JengaFlashInferBackend, tolerance=1e-2)
            pair.each(lambda bench: bench.start(1))
            pair.step(EXTEND, {1: 25})
            pair.step(DECODE, {1: 1})
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    monkeypatch.setattr("flashinfer.jit.env.FLASHINFER_GEN_SRC_DIR", tmp_path)
    asked, kept = jit_names(host.asked), {m.spec().name for m in gpu_test_modules()}
    assert len(asked) == (4 if kernels == "XQA" else 10)
    assert asked <= kept, asked - kept


@pytest.mark.parametrize("name", ["windows", "cross"])
def test_rows_may_change_once_the_tables_are_built(name: str, backend: Any) -> None:
    """The scheduler is told so, and writes the next step's while a forward pass is at work. Of an
    encoder, which the model itself reads too, nothing is said."""
    pair = Pair.of(MODELS[name], backend)
    pair.each(lambda bench: bench.start(1))
    theirs, ours = pair.expected, pair.checked
    for mode, new in ((EXTEND, 25), (DECODE, 1)):
        ends = ours.backend.shared_read_ends(mode)
        assert (ends is SharedReadEnds.PRE_REPLAY) == (name == "windows")
        pair.each(lambda bench, new=new: bench.grow(1, new))
        inputs = pair.inputs(new, theirs.new_encoder_tokens([1]))
        batches = [bench.batch(mode, {1: new}) for bench in (theirs, ours)]
        for bench, batch in zip((theirs, ours), batches, strict=True):
            bench.backend.init_forward_metadata(batch)
        kept = ours.req_to_token.clone()
        for shared in (ours.req_to_token, batches[1].seq_lens, batches[1].req_pool_indices):
            shared.fill_(-1)
        pair.compare(*(b.run(x, inputs) for b, x in zip((theirs, ours), batches, strict=True)))
        ours.req_to_token.copy_(kept)
        pair.each(lambda bench: setattr(bench.requests[1], "encoder_cached", True))


def test_a_flushed_cache_begins_with_new_tables(backend: Any) -> None:
    pair = Pair.of(MODELS["windows"], backend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    for bench in (pair.expected, pair.checked):
        bench.finish(1)
        bench.manager.reset()
        bench.start(2)
    pair.step(EXTEND, {2: 12})
    pair.step(DECODE, {2: 1})


def test_prefills_by_fa3(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flashinfer_backend.PREFILL_VARIABLE, "fa3")
    pair = Pair.of(MODELS["windows"], JengaFlashInferBackend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    backends = {spec.backend for _, spec in pair.checked.backend._plans}
    pair.step(DECODE, {1: 1})
    assert backends == {"fa3"}
    assert {spec.backend for _, spec in pair.checked.backend._plans} == {"fa2"}


@pytest.mark.parametrize(
    ("model", "major", "expected"),
    [
        (Model(("window 17", "full")).on_gpu(), 9, ["fa3", "fa3"]),
        (Model(("window 17", "full")).on_gpu(), 10, ["fa2", "fa2"]),
        (Model(("window 17", "full")).on_gpu(), None, ["fa2", "fa2"]),
        (Model(("full",), has_sinks=True).on_gpu(dim=64), 9, ["fa3"]),
        (Model(("full",)).on_gpu(dim=512), 9, ["fa2"]),
        (replace(Model(("full",)).on_gpu(dim=192), dim_v=128), 9, ["fa2"]),
        (Model(("full",), store_dtype=torch.float8_e4m3fn).on_gpu(), 9, ["fa2"]),
    ],
)
def test_hopper_prefills_by_fa3_where_the_group_fits(
    model: Model,
    major: int | None,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    host: Host,
) -> None:
    monkeypatch.setattr(flashinfer_backend, "device_major", lambda: major)
    backend = Bench(model, JengaFlashInferBackend).backend
    assert [backend.prefill(group) for group in backend.groups] == expected
    for is_decode in (False, True):
        found = [
            backend._spec(backend.layers[g][0], g, is_decode, model.has_sinks).backend
            for g in backend.groups
        ]
        assert found == (["fa2"] * len(found) if is_decode else expected)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_unequal_heads_of_k_and_v(has_sinks: bool, host: Host) -> None:
    model = Model(("window 9", "full"), dim_v=8, has_sinks=has_sinks)
    for backend in (JengaFlashInferBackend, JengaFA3Backend):
        Pair.of(model, backend).serve()


@pytest.mark.parametrize("backend", [JengaFlashInferBackend, JengaFA3Backend])
def test_captured_decodes_of_unequal_heads(backend: Any, host: Host) -> None:
    captured_decodes(Model(("window 9", "full"), dim_v=8), backend)


@pytest.mark.parametrize("kernel", ["fa2", "xqa"])
@pytest.mark.parametrize("scale", [None, 4.0])
def test_fp8_pages_and_the_scales_of_a_checkpoint(
    scale: float | None, kernel: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flashinfer_backend.DECODE_VARIABLE, kernel)
    model = Model(("window 9", "full"), store_dtype=torch.float8_e4m3fn, scale=scale)
    pair = Pair.of(model, JengaFlashInferBackend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    pair.step(DECODE, {1: 1})
    if scale:
        unscaled, scaled = (
            bench.pool.get_key_buffer(1).float().nan_to_num()
            for bench in (pair.expected, pair.checked)
        )
        assert unscaled.any()
        torch.testing.assert_close(unscaled, scaled * scale)


def serve_two_dtypes(backend: Any, scale: float | None, tolerance: float) -> None:
    model = Model(
        ("window 9", "full"),
        store_dtype=torch.float8_e4m3fn,
        kv_dtypes="window=float32",
        scale=scale,
    )
    pair = Pair.of(model, backend, tolerance=tolerance)
    stored = [pair.checked.pool.get_key_buffer(layer).dtype for layer in (0, 1)]
    assert stored == [torch.float32, torch.float8_e4m3fn]
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    pair.step(DECODE, {1: 1})


def test_groups_of_two_dtypes(backend: Any) -> None:
    if backend is JengaFA3Backend:
        pytest.skip("reads the queries' dtype only")
    # SGLang's Triton kernels round queries to the dtype of what they read.
    serve_two_dtypes(backend, None, 0.1 if backend is JengaTritonBackend else 1e-5)


@pytest.mark.parametrize("kernel", ["fa2", "xqa"])
def test_a_scale_is_for_the_group_in_fp8(
    kernel: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flashinfer_backend.DECODE_VARIABLE, kernel)
    serve_two_dtypes(JengaFlashInferBackend, 4.0, 1e-5)


@pytest.mark.parametrize("mode", [EXTEND, DECODE])
def test_results_go_where_sglang_wants_them(mode: ForwardMode, backend: Any) -> None:
    """A breakable graph's output is filled in place; any other is made by us, and not zeroed."""
    pair = Pair.of(Model(("full",)), backend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    pair.each(lambda bench: bench.grow(1, 1))
    inputs = pair.inputs(1)
    batches = [bench.batch(mode, {1: 1}) for bench in (pair.expected, pair.checked)]
    given = batches[1]._attn_output = torch.full((1, 4 * 16), float("nan"))
    outs = []
    for bench, batch in zip((pair.expected, pair.checked), batches, strict=True):
        bench.backend.init_forward_metadata(batch)
        outs.append(bench.run(batch, inputs))
    assert outs[1][0].data_ptr() == given.data_ptr()
    pair.compare(*outs)


def test_rows_that_pad_a_batch_are_numbers(backend: Any) -> None:
    pair = Pair.of(Model(("full",)), backend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    ours = pair.checked
    ours.grow(1, 2)
    batch = ours.batch(EXTEND, {1: 2})
    batch._attn_output = torch.full((5, 4 * 16), float("nan"))
    ours.backend.init_forward_metadata(batch)
    padded = pair.inputs(5)[0]
    out = ours.run(batch, [replace(padded, k=padded.k[:2], v=padded.v[:2])])[0]
    assert out[:2].isfinite().all() and not out[2:].any()


def test_sinks_are_converted_once_a_step_and_follow_updates_of_weights(host: Host) -> None:
    pair = Pair.of(MODELS["sinks"], JengaFlashInferBackend)
    weights = [torch.randn(4).to(torch.bfloat16) for _ in MODELS["sinks"].layers]
    make = pair.inputs
    pair.inputs = lambda *sizes: [  # type: ignore[method-assign]
        replace(layer, sinks=sinks) for layer, sinks in zip(make(*sizes), weights, strict=True)
    ]
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    pair.step(DECODE, {1: 1})
    logits = [kept for _, kept in pair.checked.backend._sinks.values()]
    places = [kept.data_ptr() for kept in logits]
    assert len(places) == len(weights)
    for sinks in weights:
        sinks.data.mul_(-2)
    pair.step(DECODE, {1: 1})
    assert [kept.data_ptr() for kept in logits] == places, "a graph would read the old ones"


def test_layers_and_stripes_of_a_group_share_one_plan_a_step(host: Host) -> None:
    pair = Pair.of(MODELS["windows"], JengaFlashInferBackend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 25})
    groups = len(pair.checked.backend.groups)
    stripes = max(inside.stripes(pair.checked.manager))
    assert (groups, stripes, len(host.schedules), host.runs) == (3, 2, 3, 4)
    pair.step(EXTEND, {1: 5})
    assert (len(host.schedules), host.runs) == (2 * 3, 2 * 4)


def test_a_windowed_table_ends_where_the_window_does(host: Host) -> None:
    pair = Pair.of(Model(("window 9", "full")), JengaFlashInferBackend)
    pair.each(lambda bench: bench.start(1))
    pair.step(EXTEND, {1: 120})
    pair.step(DECODE, {1: 1})
    windowed, full = (g.counts.num_entries for g in pair.checked.backend._step.groups.values())
    assert (windowed, full) == (3, 31)


def test_tables_have_room_for_a_batch_and_not_for_its_longest_request_each_time(
    host: Host,
) -> None:
    pair = Pair.of(Model(("full", "full")), JengaTritonBackend)
    for row in (1, 3, 5):
        pair.each(lambda bench, row=row: bench.start(row))
    pair.step(EXTEND, {1: 100})
    pair.step(EXTEND, {3: 1, 5: 1})
    pair.step(DECODE, {1: 1, 3: 1, 5: 1})
    stripes = sum(inside.stripes(pair.checked.manager))
    assert 101 + 2 + 2 <= pair.checked.backend._eager.builder.indices.numel() / stripes <= 128


@pytest.mark.parametrize("name", ["flashinfer", "triton"])
@pytest.mark.parametrize("what", ["decoder_bidirectional", "positions"])
def test_attention_that_the_kernels_lack_is_refused(name: str, what: str, host: Host) -> None:
    backend = {"flashinfer": JengaFlashInferBackend, "triton": JengaTritonBackend}[name]

    def refused(runner: Any) -> Any:
        layer = runner.model[0]
        if what == "decoder_bidirectional":
            layer.attn_type = AttentionType.DECODER_BIDIRECTIONAL
        else:
            layer.pos_encoding_mode = "ROPE_LLAMA"
        with pytest.raises(SystemExit) as stop:
            backend(runner)
        line = str(stop.value)
        assert f"--attention-backend {name}" in line and "'full'" in line and what in line
        assert "choose --attention-backend" in line and "jenga_torch" in line

    Bench(Model(("full",)), refused)


def test_shapes_that_no_kernel_has_are_refused_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(runner: Any) -> Any:
        with pytest.raises(SystemExit, match="head_dim: expected one of") as stop:
            JengaFlashInferBackend(runner)
        assert "--attention-backend triton or jenga_torch" in str(stop.value)

    Bench(Model(("full",)), refused)


def test_unequal_rows_have_no_row_view(host: Host) -> None:
    def refused(runner: Any) -> Any:
        with pytest.raises(SystemExit, match="equal K and V") as stop:
            JengaTritonBackend(runner)
        assert "--attention-backend jenga_torch" in str(stop.value)

    Bench(Model(("full",), dim_v=8), refused)
