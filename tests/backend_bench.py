"""Small models of attention layers alone, on Jenga pools, driven batch by batch.

A `Bench` has a pool with requests in it and one attention backend. Two benches that are told the
same steps must give the same results and leave the same bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from jenga_sglang.adapter.attention.torch_backend import JengaTorchBackend
from jenga_sglang.adapter.discovery import LatentRow, discover_groups
from jenga_sglang.adapter.kv_pool import JengaKVPool
from jenga_sglang.core.books.tree import Encoded
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.passing import Passing
from jenga_sglang.core.running import Running
from jenga_sglang.layer_flags import KvDtypes

MAX_LENGTH = 200
MAX_REQUESTS = 6
POOL_TOKENS = 500
HEADS, KV_HEADS = 4, 2
# What encoders make for the requests of each row, in a model with cross-attention.
ENCODER_TOKENS = {1: 11, 2: 17, 3: 0, 4: 5, 5: 8, 6: 0}


@dataclass(frozen=True)
class Model:
    """Layers as strings: "full", "window 9" (the query counted), "chunk", "cross" for one that
    reads what an encoder made, and "again" for one that uses the KV of the layer before it."""

    layers: tuple[str, ...]
    chunk: int = 0
    soft_cap: float = 0.0
    has_sinks: bool = False
    dim: int = 16
    dim_v: int = 16
    page_size: int = 4
    dtype: torch.dtype = torch.float32
    store_dtype: torch.dtype = torch.float32
    kv_dtypes: str = ""  # as `--jenga-kv-dtype` takes them
    # With fp8: what the checkpoint divides K and V by, a power of two.
    scale: float | None = None
    # Of a server that drafts.
    tail_tokens: int = 0
    # Latent rows (MLA): one head of K, whose first ``dim_v`` elements are V.
    is_latent: bool = False
    # What one step alone reads has one small page for all stripes, whatever room there is; what is
    # freed is NaN.
    passes: bool = False

    @property
    def kv_heads(self) -> int:
        return 1 if self.is_latent else KV_HEADS

    @property
    def latent(self) -> LatentRow | None:
        return LatentRow(self.dim_v, self.dim - self.dim_v) if self.is_latent else None

    @property
    def has_encoder(self) -> bool:
        return "cross" in self.layers

    @property
    def pool_bytes(self) -> int:
        """Bytes of `POOL_TOKENS` tokens in all layers."""
        row = self.dim + (0 if self.is_latent else self.dim_v)
        rows = len(self.layers) * self.kv_heads
        return POOL_TOKENS * rows * row * self.store_dtype.itemsize

    def on_gpu(self, dim: int = 128) -> "Model":
        """The same in shapes that kernels of GPUs have."""
        store = torch.bfloat16 if self.store_dtype.itemsize > 1 else self.store_dtype
        return replace(
            self, dim=dim, dim_v=dim, page_size=16, dtype=torch.bfloat16, store_dtype=store
        )

    def modules(self) -> torch.nn.ModuleList:
        layers: list[RadixAttention] = []
        for kind in self.layers:
            same = kind == "again"
            window = int(kind.split()[1]) - 1 if kind.startswith("window") else -1
            layers.append(
                RadixAttention(
                    HEADS,
                    self.dim,
                    self.dim**-0.5,
                    self.kv_heads,
                    layer_id=layers[-1].layer_id if same else len(layers),
                    logit_cap=self.soft_cap,
                    v_head_dim=self.dim_v,
                    sliding_window_size=layers[-1].sliding_window_size if same else window,
                    use_irope=kind == "chunk",
                    is_cross_attention=kind == "cross",
                )
            )
            layers[-1].k_scale_float = layers[-1].v_scale_float = self.scale
        return torch.nn.ModuleList(layers)


@dataclass
class Request:
    """``length`` tokens of text behind ``encoder_tokens``, which fill whole pages."""

    row: int
    running: Running
    encoder_tokens: int = 0
    encoder_cached: bool = False
    length: int = 0


@dataclass(frozen=True)
class Layer:
    """The inputs of one layer in one step."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor | None


class AlwaysShort(Passing):
    """Pages pass as if they would always evict what somebody has used."""

    def _evicts_nothing_used(self, demand: Sequence[int]) -> bool:
        return False


class Bench:
    def __init__(self, model: Model, backend: Callable[[Any], Any], device: str = "cpu") -> None:
        self.model = model
        self.device = device
        self.layers = model.modules()
        groups = discover_groups(
            self.layers,
            store_dtype=model.store_dtype,
            max_length=MAX_LENGTH,
            chunk=model.chunk,
            kv_dtypes=KvDtypes.parse(model.kv_dtypes),
            latent=model.latent,
        )
        specs = tuple(group.spec for group in groups)
        geometry = plan_geometry(
            specs, pool_bytes=model.pool_bytes, max_length=MAX_LENGTH, page_size=model.page_size
        ).geometry
        self.manager = Manager(
            geometry,
            max_requests=MAX_REQUESTS,
            max_length=MAX_LENGTH,
            tail_tokens=model.tail_tokens,
        )
        if model.passes:
            passing = self.manager.passing
            self.manager.passing = AlwaysShort(passing.memory, passing.needs, passing.policy)
        self.pool = JengaKVPool(
            self.manager,
            groups,
            dtype=model.store_dtype,
            device=device,
            enable_memory_saver=False,
            poison_freed=model.passes,
        )
        # What nobody has written is NaN, but for the null pages.
        self.pool.buffer[geometry.large_page_bytes :] = 255
        rows = SimpleNamespace(
            size=MAX_REQUESTS,
            req_to_token=torch.zeros(
                (MAX_REQUESTS + 1, MAX_LENGTH), dtype=torch.int32, device=device
            ),
        )
        self.runner = SimpleNamespace(
            token_to_kv_pool=self.pool,
            req_to_token_pool=rows,
            model=self.layers,
            model_config=SimpleNamespace(context_len=MAX_LENGTH),
            device=device,
            dtype=model.dtype,
            page_size=model.page_size,
            gpu_id=0,
        )
        self.req_to_token = rows.req_to_token
        self.backend = backend(self.runner)
        self.requests: dict[int, Request] = {}
        self.passing_pages = 0  # so far
        # Where the images of a row's text lie, first and last token.
        self.images: dict[int, list[tuple[int, int]]] = {}

    # -- requests -----------------------------------------------------------------------------

    def start(self, row: int) -> None:
        made = ENCODER_TOKENS[row] if self.model.has_encoder else 0
        pages = -(-made // self.model.page_size)
        namespace = Encoded(row, pages * self.model.page_size) if made else row
        running = self.manager.lock(self.manager.miss(namespace))
        self.requests[row] = Request(row, running, made)
        self.pool.running_of_row[row] = running

    def finish(self, row: int) -> None:
        self.manager.release(self.requests.pop(row).running)
        del self.pool.running_of_row[row]

    def grow(self, row: int, new_tokens: int) -> None:
        """Pages for the new tokens; what the history before them does not need is let go."""
        request = self.requests[row]
        running, before = request.running, self.text_start(request) + request.length
        length = before + new_tokens
        if request.length:
            self.manager.slide(running, before)
        wanted = [()] if self.model.passes else None
        assert self.manager.reserve([(running, self.manager.new_pages(running, length))], wanted)
        self.manager.extend(running, length)
        self.passing_pages += sum(len(pages) for _, pages in running.passing)
        size = self.model.page_size
        ids = running.row.astype(np.int64)[:, None] * size + np.arange(size)
        self.req_to_token[row, :length] = torch.from_numpy(ids.ravel()[:length])
        request.length += new_tokens

    def text_start(self, request: Request) -> int:
        """Where the text begins in the request's row, in tokens."""
        return request.running.encoder_pages * self.model.page_size

    def new_encoder_tokens(self, rows: Iterable[int]) -> int:
        requests = [self.requests[row] for row in rows]
        return sum(r.encoder_tokens for r in requests if not r.encoder_cached)

    def batch(self, mode: ForwardMode, new: dict[int, int], padding: int = 0) -> Any:
        """What SGLang would hand over; padding requests are those of a CUDA graph's batch."""
        lengths = [self.requests[row].length for row in new] + [1] * padding
        rows = [*new] + [0] * padding
        stops = [self.text_start(self.requests[row]) + self.requests[row].length for row in new]
        locs = [
            self.req_to_token[row, stop - n : stop]
            for stop, (row, n) in zip(stops, new.items(), strict=True)
        ]
        q_lens = list(new.values())
        prefixes = [length - n for length, n in zip(lengths, q_lens, strict=False)]
        return SimpleNamespace(
            forward_mode=mode,
            batch_size=len(rows),
            seq_lens=torch.tensor(lengths, device=self.device),
            seq_lens_cpu=torch.tensor(lengths),
            req_pool_indices=torch.tensor(rows, device=self.device),
            req_pool_indices_cpu=torch.tensor(rows),
            extend_seq_lens=torch.tensor(q_lens, device=self.device),
            extend_seq_lens_cpu=q_lens,
            extend_prefix_lens=torch.tensor(prefixes, device=self.device),
            extend_prefix_lens_cpu=prefixes,
            mm_inputs=[self._inputs_of(row) for row in rows],
            out_cache_loc=torch.cat(locs or [self.req_to_token[0, :0]]).to(torch.int64),
            **self._encoder_fields(list(new), padding),
        )

    def _inputs_of(self, row: int) -> Any:
        item = SimpleNamespace(modality=Modality.IMAGE, offsets=self.images.get(row))
        return SimpleNamespace(mm_items=[item]) if row in self.images else None

    def _encoder_fields(self, rows: list[int], padding: int) -> dict[str, Any]:
        """Of padding, and of a graph's capture, SGLang keeps no lengths on the host."""
        if not self.model.has_encoder:
            return {"encoder_lens": None}
        requests = [self.requests[row] for row in rows]
        lengths = [r.encoder_tokens for r in requests] + [0] * padding
        places = [
            self.req_to_token[r.row, : self.text_start(r)] for r in requests if not r.encoder_cached
        ]
        return {
            "encoder_lens": torch.tensor(lengths, device=self.device),
            "encoder_lens_cpu": lengths[: len(rows)] or None,
            "encoder_cached": [r.encoder_cached or not r.encoder_tokens for r in requests],
            "encoder_out_cache_loc": torch.cat(places or [self.req_to_token[0, :0]]).long(),
        }

    # -- layers -------------------------------------------------------------------------------

    def run(self, batch: Any, inputs: Sequence[Layer]) -> list[torch.Tensor]:
        outs = []
        for layer, kind, given in zip(self.layers, self.model.layers, inputs, strict=True):
            own = kind != "again" and (kind != "cross" or len(given.k) > 0)
            extra = {} if given.sinks is None else {"sinks": given.sinks}
            outs.append(
                self.backend.forward(
                    given.q,
                    given.k if own else None,
                    given.v if own else None,
                    layer,
                    batch,
                    save_kv_cache=own,
                    **extra,
                )
            )
        return outs


Run = Callable[[Any, Sequence[Layer]], list[torch.Tensor]]


@dataclass
class Pair:
    """Two benches over one model; ``checked`` is the backend under test."""

    model: Model
    expected: Bench
    checked: Bench
    # Of outputs whose inputs are standard normal.
    tolerance: float = 1e-5
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, model: Model, backend: Any, device: str = "cpu", tolerance: float = 1e-5) -> "Pair":
        """``backend`` beside plain torch."""
        return cls(
            model, *(Bench(model, b, device) for b in (JengaTorchBackend, backend)), tolerance
        )

    @classmethod
    def with_and_without_passing(cls, model: Model, backend: Any) -> "Pair":
        """``backend`` on pages some of which pass, beside plain torch on pages that do not."""
        checked = Bench(replace(model, passes=True), backend)
        return cls(model, Bench(model, JengaTorchBackend), checked)

    def each(self, do: Callable[[Bench], None]) -> None:
        do(self.expected)
        do(self.checked)

    def inputs(self, tokens: int, encoder_tokens: int = 0) -> list[Layer]:
        """For a batch of so many tokens, and so many that encoders have just made."""
        dtype, device = self.model.dtype, self.checked.device

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=self.generator).to(dtype).to(device)

        def stored(*shape: int) -> torch.Tensor:
            """Numbers that the pool keeps as they are, scaled or not."""
            return normal(*shape).to(self.model.store_dtype).to(dtype) * (self.model.scale or 1.0)

        def projected(new: int) -> list[torch.Tensor]:
            """q, k and v of ``new`` tokens as models make them: parts of the rows of one tensor."""
            kv_heads, dim_v = self.model.kv_heads, self.model.dim_v
            heads = [(HEADS, self.model.dim), (kv_heads, self.model.dim), (kv_heads, dim_v)]
            sizes = [count * dim for count, dim in heads]
            rows = torch.cat([normal(new, sizes[0]), stored(new, sum(sizes[1:]))], dim=1)
            q, k, v = rows.split(sizes, dim=1)
            k, v = (x.unflatten(1, shape) for x, shape in zip((k, v), heads[1:], strict=True))
            return [q, k, k[..., :dim_v] if self.model.is_latent else v]

        def layer(kind: str) -> Layer:
            q, k, v = projected(tokens)
            if kind == "cross":
                _, k, v = projected(encoder_tokens)
            return Layer(q, k, v, normal(HEADS) if self.model.has_sinks else None)

        return [layer(kind) for kind in self.model.layers]

    def step(self, mode: ForwardMode, new: dict[int, int]) -> None:
        """Run a batch of ``new`` tokens per row on both sides and compare all they did."""
        self.each(lambda bench: bench.manager.end_step())
        for row, tokens in new.items():
            self.each(lambda bench, row=row, n=tokens: bench.grow(row, n))
        inputs = self.inputs(sum(new.values()), self.expected.new_encoder_tokens(new))
        outs = []
        for bench in (self.expected, self.checked):
            batch = bench.batch(mode, new)
            bench.backend.init_forward_metadata(batch)
            outs.append(bench.run(batch, inputs))
            for row in new:
                bench.requests[row].encoder_cached = True
        self.compare(*outs)

    def serve(self) -> None:
        """Every kind of batch: prompts in chunks, mixed, decodes, pages that change hands."""
        for row in (3, 1, 5):
            self.each(lambda bench, row=row: bench.start(row))
        self.step(ForwardMode.EXTEND, {3: 30, 1: 1})
        self.step(ForwardMode.EXTEND, {5: 18, 3: 7})
        self.step(ForwardMode.MIXED, {1: 1, 3: 23, 5: 1})
        for _ in range(2):
            self.step(ForwardMode.DECODE, {5: 1, 3: 1, 1: 1})
        self.each(lambda bench: bench.finish(3))
        self.each(lambda bench: bench.start(2))
        self.step(ForwardMode.EXTEND, {2: 40})
        self.step(ForwardMode.DECODE, {1: 1, 2: 1})

    def serve_captured(self, graph_batch: int, run: Run) -> None:
        """Decodes of a captured batch size between prompts; ``run`` replays the graph."""
        for row in (1, 4):
            self.each(lambda bench, row=row: bench.start(row))
        self.step(ForwardMode.EXTEND, {1: 14, 4: 33})
        for _ in range(3):
            self.replay({4: 1, 1: 1}, graph_batch, run)
        self.each(lambda bench: bench.finish(1))
        self.each(lambda bench: bench.start(6))
        self.step(ForwardMode.EXTEND, {6: 20})
        self.replay({6: 1, 4: 1}, graph_batch, run)

    def replay(self, new: dict[int, int], graph_batch: int, run: Run) -> None:
        """A decode of a captured batch size, the rest padding, against an eager one."""
        for row in new:
            self.each(lambda bench, row=row: bench.grow(row, 1))
        inputs = self.inputs(graph_batch)
        real = len(new)
        cut = [
            Layer(given.q[:real], given.k[:real], given.v[:real], given.sinks) for given in inputs
        ]
        batch = self.expected.batch(ForwardMode.DECODE, new)
        self.expected.backend.init_forward_metadata(batch)
        expected = self.expected.run(batch, cut)
        batch = self.checked.batch(ForwardMode.DECODE, new, padding=graph_batch - real)
        self.checked.backend.init_forward_metadata_out_graph(batch)
        self.compare(expected, [out[:real] for out in run(batch, inputs)])

    def padded_step(self, mode: ForwardMode, new: dict[int, int], padding: int) -> None:
        """A batch against the same one as a rank of data-parallel attention has it: ``padding``
        tokens longer, in a decode of requests without a row. Padding writes nothing."""
        for row, tokens in new.items():
            self.each(lambda bench, row=row, n=tokens: bench.grow(row, n))
        real = sum(new.values())
        inputs = self.inputs(real + padding)
        cut = [
            Layer(given.q[:real], given.k[:real], given.v[:real], given.sinks) for given in inputs
        ]
        batch = self.expected.batch(mode, new)
        self.expected.backend.init_forward_metadata(batch)
        expected = self.expected.run(batch, cut)
        decodes = mode == ForwardMode.DECODE
        batch = self.checked.batch(mode, new, padding=padding if decodes else 0)
        fill = self.checked.backend.get_cuda_graph_seq_len_fill_value()
        assert not decodes or batch.seq_lens_cpu[len(new) :].tolist() == [fill] * padding
        nowhere = batch.out_cache_loc.new_zeros(padding)
        batch.out_cache_loc = torch.cat([batch.out_cache_loc, nowhere])
        self.checked.backend.init_forward_metadata(batch)
        outs = self.checked.run(batch, inputs)
        assert all(len(out) == real + padding for out in outs)
        assert decodes or not any(out[real:].any() for out in outs)
        self.compare(expected, [out[:real] for out in outs])

    def serve_padded(self) -> None:
        """Prompts, chunks and decodes of a rank whose batches are shorter than another's."""
        for row in (3, 1):
            self.each(lambda bench, row=row: bench.start(row))
        self.padded_step(ForwardMode.EXTEND, {3: 30, 1: 1}, 5)
        self.padded_step(ForwardMode.EXTEND, {3: 7}, 1)
        for padding in (2, 0, 1):
            self.padded_step(ForwardMode.DECODE, {1: 1, 3: 1}, padding)

    def compare(self, expected: list[torch.Tensor], checked: list[torch.Tensor]) -> None:
        for number, (theirs, ours) in enumerate(zip(expected, checked, strict=True)):
            torch.testing.assert_close(
                ours,
                theirs,
                rtol=10 * self.tolerance,
                atol=self.tolerance,
                msg=lambda text, n=number: f"layer {n}: {text}",
            )
        # Bytes, as most of the pool is NaN. Plain torch stores unscaled.
        if self.model.scale is None and self.expected.model == self.checked.model:
            assert torch.equal(self.expected.pool.buffer, self.checked.pool.buffer)
