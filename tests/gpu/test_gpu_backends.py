"""SGLang's attention backends on Jenga pools, batch by batch, on a GPU: against plain torch, with
decodes captured in CUDA graphs of their own."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backend_bench import Bench, Layer, Model, Pair
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter.attention import flashinfer_backend, triton_backend
from jenga_sglang.adapter.attention.fa3_backend import JengaFA3Backend
from jenga_sglang.adapter.attention.flashinfer_backend import JengaFlashInferBackend
from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("flashinfer_modules", "settings")]

GRAPH_BATCH = 4
# Weights and outputs are bf16, of 8 bits; fp8 pages hold the same numbers for both sides.
TOLERANCE = 1e-2
WINDOWS = Model(("window 17", "full", "window 17", "window 40"))
MODELS = {
    "windows": WINDOWS.on_gpu(),
    "sinks": Model(("window 17", "full", "window 17"), has_sinks=True).on_gpu(dim=64),
    "chunks": Model(("chunk", "full", "chunk"), chunk=32).on_gpu(),
    "shared KV": Model(("window 17", "again", "full", "again")).on_gpu(),
    "cross": Model(("full", "cross", "window 17", "cross")).on_gpu(),
    "fp8": Model(("full",) * 2, store_dtype=torch.float8_e4m3fn, scale=2.0).on_gpu(),
    "latent rows": replace(Model(("full",) * 2).on_gpu(dim=576), dim_v=512, is_latent=True),
}
KERNELS = {
    "flashinfer": JengaFlashInferBackend,
    "flashinfer, XQA and FA3": JengaFlashInferBackend,
    "fa3": JengaFA3Backend,
    "triton": JengaTritonBackend,
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backends ask of a server's settings."""
    schedule = SimpleNamespace(chunked_prefill_size=64, max_prefill_tokens=64)
    monkeypatch.setattr(flashinfer_backend, "get_schedule", lambda: schedule)
    monkeypatch.setattr(flashinfer_backend, "max_prefill_buffer_tokens", lambda: 64)
    monkeypatch.setattr(flashinfer_backend, "get_cuda_graph_max_batch_size", lambda size: size)
    execution = SimpleNamespace(kernel=SimpleNamespace(triton_attention_num_kv_splits=8))
    monkeypatch.setattr(triton_backend, "get_exec", lambda: execution)


@pytest.fixture(params=[(kernel, name) for kernel in KERNELS for name in MODELS], ids=str)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, is_hopper: bool) -> Pair:
    kernel, name = request.param
    if kernel == "flashinfer, XQA and FA3":
        if not is_hopper or name != "windows":
            pytest.skip("needs sm_90, and is built for one model")
        monkeypatch.setenv(flashinfer_backend.DECODE_VARIABLE, "xqa")
        monkeypatch.setenv(flashinfer_backend.PREFILL_VARIABLE, "fa3")
    if kernel == "fa3":
        pytest.importorskip("sgl_kernel", exc_type=ImportError)
        if not is_hopper or name == "fp8":
            pytest.skip("is compiled for sm_90, and for KV of the queries' dtype")
    if kernel == "triton" and name == "fp8":
        pytest.skip("its kernels round the queries to fp8, plain torch does not")
    return Pair.of(MODELS[name], KERNELS[kernel], "cuda", TOLERANCE)


def test_every_kind_of_batch(pair: Pair) -> None:
    pair.serve()


class Captured:
    """Decodes of one batch size in a CUDA graph, warmed up and captured as SGLang does it."""

    def __init__(self, bench: Bench, inputs: Sequence[Layer]) -> None:
        self.bench = bench
        self.inputs = [replace(given) for given in inputs]
        bench.backend.init_cuda_graph_state(GRAPH_BATCH, GRAPH_BATCH)
        batch = bench.batch(ForwardMode.DECODE, {}, padding=GRAPH_BATCH)
        bench.backend.init_forward_metadata_out_graph(batch, in_capture=True)
        for _ in range(2):
            torch.cuda.synchronize()
            bench.run(batch, self.inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outs = bench.run(batch, self.inputs)

    def replay(self, batch: Any, inputs: Sequence[Layer]) -> list[torch.Tensor]:
        """The batch's tables are built already, outside the graph."""
        for captured, given in zip(self.inputs, inputs, strict=True):
            for name in ("q", "k", "v", "sinks"):
                target, value = getattr(captured, name), getattr(given, name)
                if value is not None:
                    target.copy_(value)
        self.graph.replay()
        return [out.clone() for out in self.outs]


def test_a_captured_decode_follows_lengths_pages_and_padding(pair: Pair) -> None:
    before = pair.checked.pool.buffer.clone()
    captured = Captured(pair.checked, pair.inputs(GRAPH_BATCH))
    captured.graph.replay()
    assert torch.equal(before, pair.checked.pool.buffer), "padding was written"
    pair.serve_captured(GRAPH_BATCH, captured.replay)


def test_a_step_is_prepared_without_waiting_for_the_device() -> None:
    """Once its modules are loaded: tables, plans and all layers are enqueued while it works."""
    pair = Pair.of(MODELS["windows"], JengaFlashInferBackend, "cuda", TOLERANCE)
    captured = Captured(pair.checked, pair.inputs(GRAPH_BATCH))
    pair.each(lambda bench: bench.start(1))
    pair.step(ForwardMode.EXTEND, {1: 50})
    pair.replay({1: 1}, GRAPH_BATCH, captured.replay)
    bench = pair.checked
    bench.grow(1, 1)
    batch = bench.batch(ForwardMode.DECODE, {1: 1}, padding=GRAPH_BATCH - 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bench.backend.init_forward_metadata_out_graph(batch)
        captured.graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
