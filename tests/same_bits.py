"""One request computed in several ways: whatever it is computed beside, and wherever its prompt is
cut, a backend of `--enable-deterministic-inference` gives the same bits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from backend_bench import HEADS, Bench, Layer, Model
from sglang.srt.model_executor.forward_batch_info import ForwardMode

TARGET = 3
# What other requests of a batch have that is new, by row; the target's is 0.
Batch = dict[int, int]
ALONE: Batch = {TARGET: 0}
FIRST: Batch = {TARGET: 0, 1: 5, 5: 19}
LAST: Batch = {2: 33, 4: 1, TARGET: 0}
BETWEEN: Batch = {1: 40, TARGET: 0, 2: 2, 4: 7}


def inputs_of(model: Model, tokens: int, seed: int) -> list[Layer]:
    """Queries, keys and values of so many tokens, a layer each."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(model.dtype)

    layers = []
    for _ in model.layers:
        k = normal(tokens, model.kv_heads, model.dim)
        v = k[..., : model.dim_v] if model.is_latent else normal(*k.shape[:2], model.dim_v)
        layers.append(Layer(normal(tokens, HEADS, model.dim), k, v, None))
    sinks = normal(HEADS) if model.has_sinks else None
    return [Layer(layer.q, layer.k, layer.v, sinks) for layer in layers]


class Way:
    """A bench of its own, in which the target is computed step by step beside others."""

    def __init__(self, model: Model, backend: Callable[[Any], Any], tokens: int) -> None:
        self.bench = Bench(model, backend)
        self.inputs = inputs_of(model, tokens, seed=0)
        self.done = 0
        self.steps = 0
        self.outs: list[list[torch.Tensor]] = [[] for _ in model.layers]
        self.bench.start(TARGET)

    def step(self, new: int, batch: Batch = ALONE, mode: ForwardMode = ForwardMode.EXTEND) -> None:
        """``new`` tokens of the target, beside others that begin anew in each step."""
        self.steps += 1
        others = [row for row in batch if row != TARGET]
        for row in others:
            self.bench.start(row)
        sizes = {row: tokens or new for row, tokens in batch.items()}
        if mode.is_decode():
            # Their prompts, of as many tokens, have been computed before.
            for row in others:
                self.bench.grow(row, sizes[row])
                self._run(ForwardMode.EXTEND, {row: sizes[row]})
            sizes = dict.fromkeys(batch, 1)
        for row, tokens in sizes.items():
            self.bench.grow(row, tokens)
        outs = self._run(mode, sizes)
        self.done += new
        start = 0
        for row, tokens in sizes.items():
            if row == TARGET:
                for kept, out in zip(self.outs, outs, strict=True):
                    kept.append(out[start : start + tokens])
            start += tokens
        for row in others:
            self.bench.finish(row)

    def _run(self, mode: ForwardMode, sizes: Batch) -> list[torch.Tensor]:
        parts = [
            self._of_target(tokens)
            if row == TARGET
            else inputs_of(self.bench.model, tokens, seed=100 * self.steps + row)
            for row, tokens in sizes.items()
        ]
        layers = [
            Layer(
                torch.cat([p.q for p in of_layer]),
                torch.cat([p.k for p in of_layer]),
                torch.cat([p.v for p in of_layer]),
                own.sinks,
            )
            for own, *of_layer in zip(self.inputs, *parts, strict=True)
        ]
        batch = self.bench.batch(mode, sizes)
        self.bench.backend.init_forward_metadata(batch)
        return self.bench.run(batch, layers)

    def _of_target(self, tokens: int) -> list[Layer]:
        part = slice(self.done, self.done + tokens)
        return [Layer(x.q[part], x.k[part], x.v[part], x.sinks) for x in self.inputs]

    def decode(self, tokens: int, batch: Batch = ALONE) -> None:
        for _ in range(tokens):
            self.step(1, batch, ForwardMode.DECODE)

    def results(self) -> list[torch.Tensor]:
        """(tokens, heads * dim) a layer."""
        return [torch.cat(kept).flatten(1) for kept in self.outs]


def differing_tokens(ways: Sequence[Way]) -> int:
    """At how many tokens some way has other bits than the first."""
    first, *others = [way.results() for way in ways]
    return sum(
        int((one != other).any(1).sum())
        for results in others
        for one, other in zip(first, results, strict=True)
    )
