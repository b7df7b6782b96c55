"""Benches whose requests draft: tails, steps of a draft model, and chains that are verified."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from backend_bench import Bench, Layer, Model, Pair
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter.attention.device_drafts import DeviceDraftSteps
from jenga_sglang.adapter.attention.torch_drafts import JengaTorchDraftSteps


def give_tail(bench: Bench, row: int, drafts: int) -> None:
    """Room for drafts behind what the request of ``row`` has for good, in pages of its own."""
    request, manager, size = bench.requests[row], bench.manager, bench.model.page_size
    manager.commit(request.running, request.length)
    stop = request.length + drafts
    assert manager.reserve([(request.running, manager.new_pages(request.running, stop))])
    manager.extend_tail(request.running, stop)
    ids = request.running.row.astype(np.int64)[:, None] * size + np.arange(size)
    bench.req_to_token[row, :stop] = torch.from_numpy(ids.ravel()[:stop])


def verified_batch(bench: Bench, rows: Sequence[int], drafts: int, padding: int = 0) -> Any:
    """What SGLang hands over to have ``drafts`` tokens of each request verified: lengths without
    them, and places of requests alone, not of padding."""
    return _tail_batch(bench, ForwardMode.TARGET_VERIFY, rows, drafts, padding)


def drafting_batch(bench: Bench, rows: Sequence[int], steps: int, padding: int = 0) -> Any:
    """The one batch of all steps of a draft model, with the places that they write."""
    return _tail_batch(bench, ForwardMode.DECODE, rows, steps, padding)


def _tail_batch(
    bench: Bench, mode: ForwardMode, rows: Sequence[int], tokens: int, padding: int
) -> Any:
    lengths = [bench.requests[row].length for row in rows] + [1] * padding
    places = [
        bench.req_to_token[row, length : length + tokens]
        for row, length in zip(rows, lengths, strict=False)
    ]
    numbers = [*rows] + [0] * padding
    nowhere = padding * tokens if mode.is_decode() else 0
    locs = torch.cat([*places, bench.req_to_token[0, :0].new_zeros(nowhere)])
    return SimpleNamespace(
        forward_mode=mode,
        batch_size=len(numbers),
        seq_lens=torch.tensor(lengths, device=bench.device),
        seq_lens_cpu=torch.tensor(lengths),
        req_pool_indices=torch.tensor(numbers, device=bench.device),
        req_pool_indices_cpu=torch.tensor(numbers),
        out_cache_loc=locs.to(torch.int64),
        encoder_lens=None,
        spec_info=SimpleNamespace(draft_token_num=tokens, tree_topk=1, custom_mask=None),
    )


def extended_batch(bench: Bench, rows: Sequence[int], drafts: int) -> Any:
    """What a draft model computes anew after a verify: lengths with the tokens that were."""
    batch = verified_batch(bench, rows, drafts)
    prefixes = batch.seq_lens_cpu.tolist()
    batch.forward_mode = ForwardMode.DRAFT_EXTEND_V2
    batch.seq_lens = batch.seq_lens + drafts
    batch.seq_lens_cpu = batch.seq_lens_cpu + drafts
    batch.extend_seq_lens_cpu = [drafts] * len(rows)
    batch.extend_seq_lens = torch.tensor(batch.extend_seq_lens_cpu, device=bench.device)
    batch.extend_prefix_lens_cpu = prefixes
    batch.extend_prefix_lens = torch.tensor(prefixes, device=bench.device)
    return batch


class TwoModels:
    """Two backends on one pool, each for some of its layers, as of a target and its draft."""

    def __init__(self, backend: Any, runner: Any, first: Sequence[int]) -> None:
        layers = list(runner.model)
        self.of_layer: dict[int, Any] = {}
        for is_first in (True, False):
            own = [layer for layer in layers if (layer.layer_id in first) == is_first]
            runner.model = torch.nn.ModuleList(own)
            made = backend(runner)
            self.of_layer |= {layer.layer_id: made for layer in own}
        self.backends = list(dict.fromkeys(self.of_layer.values()))

    def init_forward_metadata(self, batch: Any) -> None:
        for backend in self.backends:
            backend.init_forward_metadata(batch)

    def forward(self, q: Any, k: Any, v: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
        return self.of_layer[layer.layer_id].forward(q, k, v, layer, *args, **kwargs)


class DraftingPair(Pair):
    """A pair whose requests draft ``steps`` tokens at a time."""

    steps: int = 5

    @classmethod
    def drafting(
        cls, model: Model, backend: Any, steps: int, tolerance: float = 1e-5
    ) -> "DraftingPair":
        pair = cls.of(model, backend, tolerance=tolerance)
        assert isinstance(pair, DraftingPair)
        pair.steps = steps
        pair.expected_steps = JengaTorchDraftSteps(pair.expected.runner, steps)
        pair.checked_steps = DeviceDraftSteps(backend, pair.checked.runner, steps)
        return pair

    def begin(self, lengths: dict[int, int]) -> None:
        for row in lengths:
            self.each(lambda bench, row=row: bench.start(row))
        self.step(ForwardMode.EXTEND, lengths)

    def round(self, accepted: dict[int, int], padding: int | None = None) -> None:
        """Draft, verify, and compute the draft's rows again; then accept so many drafts of each
        request. With ``padding``, drafts and verify in the tensors of a graph of as many more
        requests."""
        for row in accepted:
            self.each(lambda bench, row=row: give_tail(bench, row, 2 * (self.steps + 1)))
        self.draft(list(accepted), padding)
        self.verify(list(accepted), padding)
        self.extend(list(accepted))
        for row, count in accepted.items():
            for bench in (self.expected, self.checked):
                bench.requests[row].length += 1 + count

    def draft(self, rows: list[int], padding: int | None = None) -> None:
        theirs = drafting_batch(self.expected, rows, self.steps)
        ours = drafting_batch(self.checked, rows, self.steps, padding or 0)
        self.expected_steps.init_forward_metadata(theirs)
        self._prepare(self.checked_steps, ours, padding)
        pairs = zip(
            self.expected_steps.attn_backends, self.checked_steps.attn_backends, strict=True
        )
        for expected, checked in pairs:
            self._compare_runs(theirs, ours, len(rows), (padding or 0), (expected, checked))

    def verify(self, rows: list[int], padding: int | None = None) -> None:
        tokens = self.steps + 1
        theirs = verified_batch(self.expected, rows, tokens)
        ours = verified_batch(self.checked, rows, tokens, padding or 0)
        self.expected.backend.init_forward_metadata(theirs)
        self._prepare(self.checked.backend, ours, padding)
        backends = self.expected.backend, self.checked.backend
        self._compare_runs(theirs, ours, tokens * len(rows), tokens * (padding or 0), backends)

    def extend(self, rows: list[int]) -> None:
        batches = [extended_batch(b, rows, self.steps + 1) for b in (self.expected, self.checked)]
        backends = self.expected.backend, self.checked.backend
        for backend, batch in zip(backends, batches, strict=True):
            backend.init_forward_metadata(batch)
        self._compare_runs(*batches, (self.steps + 1) * len(rows), 0, backends)

    @staticmethod
    def _prepare(backend: Any, batch: Any, padding: int | None) -> None:
        if padding is None:
            backend.init_forward_metadata(batch)
        else:
            backend.init_forward_metadata_out_graph(batch)

    def _compare_runs(
        self, theirs: Any, ours: Any, real: int, padding: int, backends: tuple[Any, Any]
    ) -> None:
        inputs = self.inputs(real + padding)
        cut = [Layer(x.q[:real], x.k[:real], x.v[:real], x.sinks) for x in inputs]
        expected = self.run_on(self.expected, backends[0], theirs, cut)
        checked = self.run_on(self.checked, backends[1], ours, inputs)
        self.compare(expected, [out[:real] for out in checked])

    @staticmethod
    def run_on(bench: Bench, backend: Any, batch: Any, inputs: Sequence[Layer]) -> Any:
        own, bench.backend = bench.backend, backend
        try:
            return bench.run(batch, inputs)
        finally:
            bench.backend = own

    expected_steps: JengaTorchDraftSteps
    checked_steps: DeviceDraftSteps
