"""Tables of captured decodes, which have one entry per token in SGLang's Triton kernels."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backend_bench import MAX_LENGTH, Bench, Model

from jenga_sglang.adapter.attention import table_bytes, triton_backend
from jenga_sglang.adapter.attention.table_bytes import captured_requests, token_table_excess_bytes
from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend
from jenga_sglang.adapter.discovery import DiscoveredGroup
from jenga_sglang.adapter.start import build
from jenga_sglang.adapter.start.stages import OfStage, Stages
from jenga_sglang.core.cut.geometry import LayerGroupSpec
from jenga_sglang.core.dependency import Full, SlidingWindow

MODEL = Model(("window 9", "full", "window 9", "full", "full"))
GRAPH_BATCH = 4
MiB = 1 << 20


def graphs(backend: str = "full", **sizes: Any) -> Any:
    """SGLang's settings: the Triton backend, one request per captured size."""
    decode = SimpleNamespace(backend=backend, **({"bs": [1, 2, 4, 300], "max_bs": 300} | sizes))
    config = SimpleNamespace(decode=decode)
    kernel = SimpleNamespace(triton_attention_num_kv_splits=2)
    return SimpleNamespace(kernel=kernel, graph=SimpleNamespace(cuda_graph_config=config))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = graphs()
    for module in (triton_backend, table_bytes):
        monkeypatch.setattr(module, "get_exec", lambda: made)
    monkeypatch.setattr(table_bytes, "attention_backends", lambda: ("triton", "triton"))
    spec = SimpleNamespace(speculative_algorithm=None)
    monkeypatch.setattr(table_bytes, "get_spec", lambda: spec)
    return made


def test_what_is_taken_off_the_pool_is_what_the_tables_take(settings: Any) -> None:
    bench = Bench(MODEL, JengaTritonBackend)
    bench.backend.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH)
    tables = bench.backend._graph.builder.indices
    cuts = bench.manager.geometry.groups
    assert max(cut.stripes for cut in cuts) > 1
    stock_bytes = GRAPH_BATCH * MAX_LENGTH * 8
    excess = token_table_excess_bytes(cuts, GRAPH_BATCH, MAX_LENGTH)
    assert tables.numel() * tables.itemsize == stock_bytes + excess
    assert excess > stock_bytes


def test_tables_of_drafts_are_counted(settings: Any) -> None:
    """Three tokens are verified at once; a draft's last two layers, a window and a full one, make
    them in four steps. The backends take what was counted, and no table of the other's layers."""
    bench = Bench(MODEL, JengaTritonBackend)
    drafting = table_bytes.Drafting(layer_ids=(2, 4), queries=3, steps=4)
    layers, bytes_taken = list(bench.layers), 0
    for own, steps, tokens in (((0, 1, 3), 1, 3), ((2, 4), 3, 1)):
        bench.runner.model = torch.nn.ModuleList([layers[i] for i in own])
        for step in range(steps):
            backend = JengaTritonBackend(bench.runner, drafted=step)
            backend.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH * tokens)
            tables = backend._graph.builder.indices
            bytes_taken += tables.numel() * tables.itemsize
    stock_bytes = 4 * GRAPH_BATCH * MAX_LENGTH * 8
    cuts = bench.manager.geometry.groups
    excess = token_table_excess_bytes(cuts, GRAPH_BATCH, MAX_LENGTH, drafting)
    assert bytes_taken == stock_bytes + excess and excess > 0


def test_what_a_server_drafts_is_read_off_its_flags(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert table_bytes.Drafting.of_server(()) == table_bytes.Drafting((), 1, 1)
    spec = SimpleNamespace(
        speculative_algorithm="EAGLE", speculative_num_draft_tokens=6, speculative_num_steps=5
    )
    monkeypatch.setattr(table_bytes, "get_spec", lambda: spec)
    assert table_bytes.Drafting.of_server((7,)) == table_bytes.Drafting((7,), 6, 5)
    # N-grams are drafted by no model's steps.
    assert table_bytes.Drafting.of_server(()) == table_bytes.Drafting((), 6, 1)


def test_the_largest_captured_decode_holds_no_more_requests_than_run(settings: Any) -> None:
    assert captured_requests(512) == 300
    assert captured_requests(100) == 100


@pytest.mark.parametrize(
    ("backend", "graph_backend"), [("flashinfer", "full"), ("triton", "disabled")]
)
def test_nothing_comes_off_without_tables_of_tokens(
    backend: str, graph_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_bytes, "get_exec", lambda: graphs(graph_backend))
    monkeypatch.setattr(table_bytes, "attention_backends", lambda: (backend, backend))
    assert captured_requests(512) == 0


@pytest.mark.parametrize("max_total_tokens", [None, 1000])
def test_the_pool_leaves_room_for_them_unless_its_size_was_given(
    max_total_tokens: int | None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma-3-27B's groups: several stripes of full attention, each with a table of its own."""
    alone = SimpleNamespace(disaggregation_mode="null")
    monkeypatch.setattr(build, "get_disagg", lambda: alone)
    specs = (
        LayerGroupSpec("full", tuple(range(5, 60, 6)), Full(), 4096, 4096),
        LayerGroupSpec("window", tuple(range(0, 52)), SlidingWindow(1024), 4096, 4096),
    )
    schedule = SimpleNamespace(max_total_tokens=max_total_tokens)
    monkeypatch.setattr(build, "get_schedule", lambda: schedule)
    monkeypatch.setattr(build, "get_req_to_token_extra_context_len", lambda: 4)
    configurator = SimpleNamespace(page_size=16, model_config=SimpleNamespace(context_len=131072))
    sizes = SimpleNamespace(max_running_requests=256)
    groups = tuple(DiscoveredGroup(spec, 16, 128, 128) for spec in specs)
    stages = Stages([OfStage(groups, None, 40 << 30)], 0)
    geometry, held = build.cut_beside_tables(configurator, sizes, stages)
    assert held is geometry
    _, full = geometry.groups  # the window's first layer is the model's
    assert full.stripes > 1
    tables = 256 * 8 * (131072 + 4) * (full.stripes - 1)
    spare = (40 << 30) - geometry.pool_bytes
    if max_total_tokens is None:
        assert tables < spare < tables + 64 * MiB
    else:
        assert spare < 64 * MiB
