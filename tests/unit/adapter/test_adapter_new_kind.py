"""A kind of layer that this package does not have, added as one class in this file.

It keeps more than its queries read. The core keeps, hits and evicts for it, `jenga_torch` reads
what it says, and the backends whose kernels have no such mask refuse it by name.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import core_inspector as inside
import numpy as np
import pytest
import torch
from backend_bench import HEADS, KV_HEADS, Bench, Layer, Model, Request
from core_builders import make_manager
from fake_engine import FakeEngine, Job
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter import discovery
from jenga_sglang.adapter.attention.flashinfer_backend import JengaFlashInferBackend
from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend
from jenga_sglang.adapter.attention.triton_backend import JengaTritonBackend
from jenga_sglang.core.dependency import Dependency, Full, check_legal
from jenga_sglang.core.ranges import Range, union

EXTEND, MIXED, DECODE = ForwardMode.EXTEND, ForwardMode.MIXED, ForwardMode.DECODE


@dataclass(frozen=True)
class DilatedWindow(Dependency):
    """The first ``sinks`` tokens, and of the last ``window`` ones every ``step``-th, the query's
    own included."""

    sinks: int
    window: int
    step: int

    def needed(self, length: int) -> tuple[Range, ...]:
        recent = Range(max(0, length - self.window + 1), length)
        return tuple(union([Range(0, min(self.sinks, length)), recent]))

    def visible(self, position: int) -> tuple[Range, ...]:
        recent = range(position, max(-1, position - self.window), -self.step)
        sinks = range(min(self.sinks, position + 1))
        return tuple(union(Range(token, token + 1) for token in (*sinks, *recent)))

    def peak_tokens(self, length: int) -> int:
        return min(length, self.sinks + self.window - 1)

    def __str__(self) -> str:
        return f"{self.sinks} sinks and every {self.step}rd token of {self.window}"


KIND = DilatedWindow(sinks=2, window=24, step=3)
# "window" layers are found to be of the new kind; see `discovered`.
MODEL = Model(("window 24", "full", "window 24"))


def reads(kind: str, position: int) -> list[int]:
    """Which tokens the query reads, told apart from `DilatedWindow` on purpose."""
    if kind == "full":
        return list(range(position + 1))
    recent = [t for t in range(position + 1) if t > position - 24 and (position - t) % 3 == 0]
    return sorted({t for t in (0, 1) if t <= position} | set(recent))


@pytest.fixture(autouse=True)
def discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        discovery,
        "_dependency",
        lambda layer, chunk: Full() if layer.sliding_window_size == -1 else KIND,
    )


# -- core ---------------------------------------------------------------------------------------


def test_the_query_at_30_reads_two_sinks_and_every_third_token() -> None:
    seen = [t for r in KIND.visible(30) for t in range(r.start, r.stop)]
    assert seen == [0, 1, 9, 12, 15, 18, 21, 24, 27, 30] == reads("window 24", 30)
    assert KIND.needed(30) == (Range(0, 2), Range(7, 30))
    check_legal(KIND, range(80))


def test_the_core_keeps_hits_and_evicts_what_the_kind_needs() -> None:
    """Random serving in a pool that is too small for all of it; every byte is checked."""
    pick = random.Random(3)
    manager = make_manager(KIND, Full(), num_large=60, page_size=4, max_requests=4, max_length=120)
    engine = FakeEngine(manager, pick.randint)
    for number in range(30):
        prompt = [0] * pick.randint(1, 90) + [number % 3] * pick.randint(0, 20)
        engine.submit(Job("", prompt, pick.randint(0, 9)))
    while engine.waiting or engine.running:
        engine.step()
        engine.check_cached()
        manager.check()
    assert engine.counts["hit tokens"] > 200 and engine.counts["checked tokens"] > 5_000
    assert manager.counters.evicted.total() > 0
    assert inside.num_used(manager) == [0, 0]


# -- attention ----------------------------------------------------------------------------------


@dataclass
class Dense:
    """Attention over whole sequences in plain torch, query by query; no pages."""

    model: Model
    # K and V of every token, by layer and row of the request.
    kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def share(self, source: int, target: int, tokens: int) -> None:
        """A new request begins with the first tokens of another."""
        for layer in range(len(self.model.layers)):
            k, v = self.kept[layer, source]
            self.kept[layer, target] = k[:tokens], v[:tokens]

    def run(self, new: dict[int, int], inputs: list[Layer]) -> list[torch.Tensor]:
        return [self._layer(number, new, given) for number, given in enumerate(inputs)]

    def _layer(self, number: int, new: dict[int, int], given: Layer) -> torch.Tensor:
        outs = []
        first = 0
        for row, count in new.items():
            part = slice(first, first + count)
            k, v = self.kept.get((number, row), (given.k[:0], given.v[:0]))
            k, v = torch.cat((k, given.k[part])), torch.cat((v, given.v[part]))
            self.kept[number, row] = k, v
            for position, q in zip(range(len(k) - count, len(k)), given.q[part], strict=True):
                seen = reads(self.model.layers[number], position)
                outs.append(self._attend(q, k[seen], v[seen]))
            first += count
        return torch.stack(outs)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k = k.repeat_interleave(HEADS // KV_HEADS, 1)
        v = v.repeat_interleave(HEADS // KV_HEADS, 1)
        logits = torch.einsum("hd,thd->ht", q.view(HEADS, -1), k) * self.model.dim**-0.5
        return torch.einsum("ht,thd->hd", logits.softmax(-1), v).flatten()


class Served:
    """The same steps on Jenga pages and on whole sequences."""

    def __init__(self) -> None:
        self.bench = Bench(MODEL, JengaTorchBackend)
        self.dense = Dense(MODEL)
        self.generator = torch.Generator().manual_seed(0)

    def start(self, rows: Iterable[int]) -> None:
        for row in rows:
            self.bench.start(row)

    def continue_from(self, source: int, target: int, tokens: int) -> int:
        """Leave the first ``tokens`` of a request in the tree, end it, and begin another with what
        is hit of them; how much that is."""
        manager = self.bench.manager
        history = np.arange(tokens)
        manager.publish(self.bench.requests[source].running, source, history)
        self.bench.finish(source)
        running = manager.lock(manager.match(source, history))
        request = Request(target, running, length=running.num_pages * MODEL.page_size)
        self.bench.requests[target] = request
        self.bench.pool.running_of_row[target] = running
        self.dense.share(source, target, request.length)
        return request.length

    def step(self, mode: ForwardMode, new: dict[int, int]) -> None:
        """Run a batch of ``new`` tokens per row and compare the outputs of every layer."""
        for row, count in new.items():
            self.bench.grow(row, count)
        inputs = [self._inputs(sum(new.values())) for _ in MODEL.layers]
        batch = self.bench.batch(mode, new)
        self.bench.backend.init_forward_metadata(batch)
        outs = self.bench.run(batch, inputs)
        expected = self.dense.run(new, inputs)
        for ours, theirs in zip(outs, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def _inputs(self, tokens: int) -> Layer:
        shapes = (HEADS * MODEL.dim,), (KV_HEADS, MODEL.dim), (KV_HEADS, MODEL.dim_v)
        q, k, v = [torch.randn((tokens, *shape), generator=self.generator) for shape in shapes]
        return Layer(q, k, v, None)


def test_whole_prompts_and_chunks_of_them_read_what_the_kind_says() -> None:
    served = Served()
    served.start((1, 3, 5))
    served.step(EXTEND, {3: 61, 1: 1})
    served.step(EXTEND, {5: 18, 3: 7})
    served.step(EXTEND, {5: 40})
    served.step(MIXED, {1: 1, 3: 23, 5: 1})


def test_decodes_read_what_the_kind_says() -> None:
    served = Served()
    served.start((1, 3, 5))
    served.step(EXTEND, {1: 1, 3: 29, 5: 50})
    for _ in range(9):
        served.step(DECODE, {5: 1, 3: 1, 1: 1})


def test_a_hit_and_what_follows_read_what_the_kind_says() -> None:
    served = Served()
    served.start((1,))
    served.step(EXTEND, {1: 70})
    assert served.continue_from(1, 2, 64) == 64
    served.step(EXTEND, {2: 33})
    served.step(DECODE, {2: 1})


@pytest.mark.parametrize("backend", [JengaFlashInferBackend, JengaTritonBackend])
def test_backends_without_such_a_kernel_refuse_the_kind_by_name(backend: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        Bench(MODEL, backend)
    line = str(stop.value)
    assert f"--attention-backend {backend.name}" in line and str(KIND) in line
    assert "jenga_torch" in line and "\n" not in line
