"""FlashInfer without a GPU: its own wrappers, their compiled modules replaced by the reference.

    with flashinfer_on_host() as host:
        plan.plan(counts)               # FlashInfer's Python runs as it is
        out = plan.run(q, k, v)         # the reference computes from what the kernel would be given

What a kernel takes from a schedule, the stand-in takes from where the schedule lies: the workspace
that `plan` has filled last. And it checks that the arrays on the device say what the schedule says.
Rows that a kernel reads and masks are multiplied by zero, so NaN in them spoils the result, as it
would on a GPU; rows past a request's last token are not read, as kernels fill them with zeros.

For tests. Needs flashinfer, but neither its kernels nor a compiler.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from . import reference
from .reference import Mask

# Positions of arguments of FlashInfer's modules, after the three workspaces of `plan` and
# the two and the plan of `run`.
PLAN_HEAD = RUN_HEAD = 3
DECODE_TAIL = {"cap": 15, "scale": 16}
PREFILL_TAIL = {"cap": 22, "scale": 23}
VARIANT_TAIL = {"tensor": 16, "scale": 17}
CAUSAL = 1
# Positions of the head dims of K and V in what module getters and `plan` are given.
DECODE_GETTER_DIMS, PREFILL_GETTER_DIMS, VARIANT_GETTER_DIMS, LATENT_GETTER_DIMS = 4, 5, 6, 5
DECODE_PLAN_DIMS, PREFILL_PLAN_DIMS = 11, 12


Dims = tuple[int, int]


@dataclass(frozen=True)
class Schedule:
    """What one `plan` was told. qo_indptr, kv_indptr: (B + 1,) int32. kv_lens: (B,) of latent rows
    alone, whose kernel has them from the schedule."""

    qo_indptr: list[int]
    kv_indptr: list[int]
    window_left: int
    in_graph: bool
    kv_lens: list[int] = field(default_factory=list)


@dataclass
class Host:
    """All schedules in the order of their plans, how often a kernel ran, and the modules that were
    asked for: FlashInfer's generators of them, by name, and what these would be given."""

    schedules: list[Schedule] = field(default_factory=list)
    runs: int = 0
    asked: set[tuple[Any, ...]] = field(default_factory=set)

    def keep(self, schedule: Schedule, workspaces: Sequence[torch.Tensor]) -> list[int]:
        """Write the schedule's number to where FlashInfer copies the schedule."""
        _, on_device, pinned = workspaces
        for workspace in (pinned, on_device):
            workspace[:8].view(torch.int64).fill_(len(self.schedules))
        self.schedules.append(schedule)
        return [len(self.schedules)]

    def scheduled(self, workspace: torch.Tensor) -> Schedule:
        return self.schedules[int(workspace[:8].view(torch.int64))]


@dataclass(frozen=True)
class DecodeModule:
    """Decode on CUDA cores: one query per request. `dims`: K's and V's head dim as built."""

    host: Host
    dims: Dims

    def plan(self, *given: Any) -> list[int]:
        check_dims(self.dims, given[DECODE_PLAN_DIMS:])
        indptr, batch = given[PLAN_HEAD], given[PLAN_HEAD + 1]
        in_graph, window_left = given[8], given[9]
        schedule = Schedule(list(range(batch + 1)), indptr.tolist(), window_left, in_graph)
        return self.host.keep(schedule, given[:PLAN_HEAD])

    def run(self, *given: Any) -> None:
        q, k, v, indptr, indices, last, out = given[RUN_HEAD : RUN_HEAD + 7]
        check_widths(self.dims, q, k, v, out)
        schedule = self.host.scheduled(given[1])
        assert given[12] == schedule.window_left
        paged = Paged(schedule.qo_indptr, indptr, indices, last)
        tail = DECODE_TAIL
        attend(
            self.host, schedule, paged, q, k, v, out, True, given[tail["scale"]], given[tail["cap"]]
        )


@dataclass(frozen=True)
class PrefillModule:
    """Prefill, and decode on tensor cores; `has_sinks` for the variant with sinks. `dims` as of
    `DecodeModule`; `independent`: what FlashInfer asks for where K and V have other strides."""

    host: Host
    dims: Dims
    has_sinks: bool = False
    independent: tuple[Any, ...] = ()

    def plan(self, *given: Any) -> list[int]:
        check_dims(self.dims, given[PREFILL_PLAN_DIMS:])
        qo_indptr, kv_indptr = given[PLAN_HEAD : PLAN_HEAD + 2]
        in_graph, window_left = given[11], given[15]
        schedule = Schedule(qo_indptr.tolist(), kv_indptr.tolist(), window_left, in_graph)
        return self.host.keep(schedule, given[:PLAN_HEAD])

    def paged_run(self, *given: Any) -> None:
        q, k, v, qo_indptr, indptr, indices, last, out, _, mask = given[RUN_HEAD : RUN_HEAD + 10]
        check_widths(self.dims, q, k, v, out)
        if k.stride() != v.stride() and self.independent:
            self.host.asked.add(self.independent)
        schedule = self.host.scheduled(given[1])
        assert given[14] == schedule.window_left
        assert qo_indptr[: len(schedule.qo_indptr)].tolist() == schedule.qo_indptr
        paged = Paged(schedule.qo_indptr, indptr, indices, last)
        sinks, cap = None, 0.0
        if self.has_sinks:
            sinks, scale = given[VARIANT_TAIL["tensor"]], given[VARIANT_TAIL["scale"]]
        else:
            scale, cap = given[PREFILL_TAIL["scale"]], given[PREFILL_TAIL["cap"]]
        # One query per request needs no mask for causality.
        queries = torch.tensor(schedule.qo_indptr).diff()
        is_causal = mask == CAUSAL or bool((queries <= 1).all())
        attend(self.host, schedule, paged, q, k, v, out, is_causal, scale, cap, sinks)


@dataclass(frozen=True)
class LatentModule:
    """Prefill and decode over latent rows. `dims`: of a row's two parts, as built."""

    host: Host
    dims: Dims

    def plan(self, *given: Any) -> list[int]:
        qo_indptr, kv_indptr, kv_lens, _, dim_v, _ = given[PLAN_HEAD:]
        check_dims(self.dims, (dim_v, self.dims[1]))
        lengths = kv_lens.tolist()
        schedule = Schedule(qo_indptr.tolist(), kv_indptr.tolist(), -1, False, lengths)
        self.host.keep(schedule, given[:PLAN_HEAD])
        # The launch and the places in the workspaces: what a graph keeps.
        return [len(lengths), schedule.qo_indptr[-1]]

    def run(self, *given: Any) -> None:
        q, q_rope, rows, rope, indices, out = given[RUN_HEAD : RUN_HEAD + 6]
        mask, heads, page_size, scale, _, row_scale, rope_scale, _ = given[RUN_HEAD + 7 :]
        widths = [x.shape[-1] for x in (q, q_rope, rows, rope, out)]
        assert widths == [*self.dims, *self.dims, self.dims[0]], f"{self.dims}, given {widths}"
        assert (heads, page_size) == (q.shape[1], rows.shape[1])
        # Of parts, the kernel has the strides of pages, rows and heads alone.
        assert all(x.stride(-1) == 1 for x in (q, q_rope, rows, rope, out))
        schedule = self.host.scheduled(given[1])
        assert given[2] == [len(schedule.kv_lens), schedule.qo_indptr[-1]] and len(q) == given[2][1]
        last = [(length - 1) % page_size + 1 for length in schedule.kv_lens]
        paged = Paged(
            schedule.qo_indptr, torch.tensor(schedule.kv_indptr), indices, torch.tensor(last)
        )
        values = rows.to(q.dtype) * row_scale
        keys = torch.cat([values, rope.to(q.dtype) * rope_scale], -1)
        caches = (keys.unsqueeze(2), values.unsqueeze(2))
        whole = torch.cat([q, q_rope], -1)
        queries = torch.tensor(schedule.qo_indptr).diff()
        is_causal = mask == CAUSAL or bool((queries <= 1).all())
        attend(self.host, schedule, paged, whole, *caches, out, is_causal, scale, 0.0)


def check_dims(built: Dims, asked: Sequence[Any]) -> None:
    """A plan for other head dims than the module's sizes the wrong tiles."""
    assert tuple(asked[:2]) == built, f"built for head dims {built}, planned for {asked[:2]}"


def check_widths(built: Dims, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: Any) -> None:
    """A kernel moves as many numbers a head as it was built for, whatever its tensors have: more
    than they have is memory of somebody else."""
    widths = [tensor.shape[-1] for tensor in (q, k, v, out)]
    assert widths == [built[0], *built, built[1]], f"built for head dims {built}, given {widths}"


@dataclass(frozen=True)
class Paged:
    """Tables of a batch: query offsets of the schedule, the rest as it lies on the device."""

    qo_indptr: list[int]
    indptr: torch.Tensor
    indices: torch.Tensor
    last_page_len: torch.Tensor


def attend(
    host: Host,
    schedule: Schedule,
    paged: Paged,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    is_causal: bool,
    scale: float,
    cap: float,
    sinks: torch.Tensor | None = None,
) -> None:
    """Fill `out` (rows, Hq, Dv) as the kernel would."""
    host.runs += 1
    batch = len(schedule.kv_indptr) - 1
    assert paged.indptr[: batch + 1].tolist() == schedule.kv_indptr, "planned for other lengths"
    mask = Mask(is_causal, schedule.window_left)
    for request in range(batch):
        rows = slice(*schedule.qo_indptr[request : request + 2])
        first, end = schedule.kv_indptr[request : request + 2]
        if first == end:
            out[rows] = 0
            continue
        pages = paged.indices[first:end].long()
        kv_len = (end - first - 1) * k.shape[1] + int(paged.last_page_len[request])
        keys, values = (cache[pages].flatten(0, 1)[:kv_len].to(q.dtype) for cache in (k, v))
        positions = torch.arange(kv_len)
        # In cross-attention there may be more queries than keys.
        queries = torch.arange(kv_len - (rows.stop - rows.start), kv_len)
        visible = mask.visible(queries, positions)
        logits = None if sinks is None else sinks.to(q.dtype)
        out[rows] = reference.attention(q[rows], keys, values, visible, scale, cap, logits)[0]


def xqa(host: Host) -> Any:
    """`xqa_batch_decode_with_kv_cache`, from dense tables and lengths alone."""

    def run(
        q: torch.Tensor,
        caches: tuple[torch.Tensor, torch.Tensor],
        workspace: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
        max_len: int,
        bmm1_scale: float,
        bmm2_scale: float,
        window_left: int,
        out: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        host.runs += 1
        # The kernel takes q's address alone and reads rows one right after the other.
        heads, dim = q.shape[1:]
        tokens, kv_heads = caches[0].shape[1:3]
        shape = (tokens, dim, heads // kv_heads, window_left >= 0)
        host.asked.add(("gen_xqa_module", q.dtype, caches[0].dtype, *shape, q.dtype))
        q = q.as_strided(q.shape, (heads * dim, dim, 1))
        assert int(lengths.long().max()) <= max_len
        outs = []
        for row, pages, length in zip(q, block_tables, lengths.long().tolist(), strict=True):
            used = pages[: -(-length // tokens)].long()
            keys, values = (c[used].flatten(0, 1)[:length].to(q.dtype) for c in caches)
            positions = torch.arange(length)
            visible = Mask(True, window_left).visible(positions[-1:], positions)
            logits = None if sinks is None else sinks.to(q.dtype)
            attended = reference.attention(
                row[None], keys, values, visible, bmm1_scale, sinks=logits
            )[0]
            outs.append(attended * bmm2_scale)
        result = torch.cat(outs)
        return result if out is None else out.copy_(result)

    return run


def dims_at(arguments: Sequence[Any], position: int) -> Dims:
    """Head dims of K and V among a module getter's arguments."""
    return arguments[position], arguments[position + 1]


@contextmanager
def flashinfer_on_host() -> Iterator[Host]:
    """Let FlashInfer's wrappers run on host tensors inside the block."""
    with warnings.catch_warnings(action="ignore"):
        import flashinfer.decode
        import flashinfer.jit
        import flashinfer.prefill
    host = Host()

    def decode_module(*args: Any) -> DecodeModule:
        host.asked.add(("gen_batch_decode_module", *args))
        return DecodeModule(host, dims_at(args, DECODE_GETTER_DIMS))

    def prefill_module(*args: Any) -> PrefillModule:
        is_fa2 = args[0] == "fa2"
        generator = "_gen_batch_prefill_primary_module" if is_fa2 else "gen_batch_prefill_module"
        host.asked.add((generator, *args))
        beside = ("_gen_batch_prefill_independent_paged_module", *args) if is_fa2 else ()
        return PrefillModule(host, dims_at(args, PREFILL_GETTER_DIMS), independent=beside)

    def variant_dims(*args: Any, **kwargs: Any) -> Dims:
        host.asked.add(("gen_customize_batch_prefill_module", args[0], args[1]))
        return dims_at(args, VARIANT_GETTER_DIMS)

    def latent_module(*args: Any) -> Any:
        host.asked.add(("gen_batch_mla_module", *args))
        module = LatentModule(host, dims_at(args, LATENT_GETTER_DIMS))
        return SimpleNamespace(build_and_load=lambda: module)

    plain_empty = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return plain_empty(*args, **kwargs)

    with ExitStack() as stack:

        def put(place: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(place, name, value))

        put(torch, "empty", empty)
        decode, prefill = flashinfer.decode, flashinfer.prefill
        for place in (decode, prefill):
            put(place, "device_support_pdl", lambda device: False)
            put(place, "get_batch_prefill_module", prefill_module)
        put(decode, "get_batch_decode_module", decode_module)
        put(decode, "xqa_batch_decode_with_kv_cache", xqa(host))
        put(prefill, "get_customize_batch_prefill_module", variant_dims)
        put(flashinfer.jit, "gen_batch_mla_module", latent_module)
        put(prefill, "get_batch_prefill_jit_module", lambda _, d: PrefillModule(host, d, True))
        yield host
