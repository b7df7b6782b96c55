"""Does FlashInfer pay for reading Jenga views instead of dense caches?

Same kernel, same plan, same page ids; once on the strided views of a pool, once on dense copies of
one layer. Outputs must be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from flashinfer_ext import GroupLayout
from flashinfer_ext.plan_spec import AttentionSpec
from flashinfer_ext.planner import GroupPlanner
from flashinfer_ext.testing import CaseSpec, PagedCase
from flashinfer_ext.views import KV
from flashinfer_ext.xqa import XqaDecode

from .result import Failed, Row, tried
from .timing import Call, gpu_times

BF16 = torch.bfloat16
TARGET_RATIO = 1.02
LAYERS = 10


@dataclass(frozen=True)
class Shape:
    name: str
    kernel: str
    kv_len: int
    q_len: int
    batch: int
    qo_heads: int = 16
    kv_heads: int = 4
    window: int = -1


SHAPES = (
    Shape("decode, CUDA cores, 64 x 4096", "decode", 4096, 1, 64, qo_heads=8),
    Shape("decode, tensor cores, 64 x 4096", "decode", 4096, 1, 64),
    Shape("decode, tensor cores, 8 x 32768", "decode", 32768, 1, 8),
    Shape("decode, tensor cores, window 1024, 64 x 4096", "decode", 4096, 1, 64, window=1023),
    Shape("decode, XQA, 64 x 4096", "xqa", 4096, 1, 64),
    Shape("decode, XQA, window 1024, 64 x 4096", "xqa", 4096, 1, 64, window=1023),
    Shape("prefill, FA2, 4 x 2048 of 8192", "fa2", 8192, 2048, 4),
    Shape("prefill, FA2, window 1024, 4 x 2048 of 8192", "fa2", 8192, 2048, 4, window=1023),
    Shape("prefill, FA3, 4 x 2048 of 8192", "fa3", 8192, 2048, 4),
    Shape("prefill, FA3, window 1024, 4 x 2048 of 8192", "fa3", 8192, 2048, 4, window=1023),
)


def rows(workspace: torch.Tensor, is_hopper: bool) -> Iterator[Row | Failed]:
    for shape in SHAPES:
        if is_hopper or shape.kernel not in ("fa3", "xqa"):
            yield tried(shape.name, partial(compare, shape, workspace))


def compare(shape: Shape, workspace: torch.Tensor) -> Row:
    """Time on views over time on dense copies."""
    case = make_case(shape)
    dense = tuple(cache.contiguous() for cache in case.views())
    runs = [attention_on(shape, case, workspace, c) for c in (case.views(), dense)]
    outs = [run() for run in runs]
    if not torch.equal(*outs):
        raise AssertionError(f"{shape.name}: views and dense copies differ")
    times = gpu_times(dict(zip(("views", "dense"), runs, strict=True)))
    views, other = times["views"].median_us, times["dense"].median_us
    detail = f"views {views:.1f} us, dense {other:.1f} us"
    return Row(shape.name, views / other, "x dense", other, TARGET_RATIO, detail=detail)


def make_case(shape: Shape) -> PagedCase:
    layout = GroupLayout(
        LAYERS, 16, shape.kv_heads, 128, 128, BF16, LAYERS * 2 * 16 * shape.kv_heads * 128 * 2
    )
    spec = CaseSpec(
        layout,
        (shape.kv_len,) * shape.batch,
        (shape.q_len,) * shape.batch,
        shape.qo_heads,
        window_left=shape.window,
        layer=LAYERS // 2,
    )
    case = PagedCase(spec, "cuda")
    case.build()
    case.write()
    return case


def attention_on(shape: Shape, case: PagedCase, workspace: torch.Tensor, caches: KV) -> Call:
    """A call that computes the attention on these caches; planned once, ready to be captured."""
    backend = "fa3" if shape.kernel == "fa3" else "fa2"
    spec = AttentionSpec(
        shape.qo_heads,
        shape.kv_heads,
        128,
        128,
        16,
        BF16,
        BF16,
        case.spec.scale,
        shape.window,
        backend=backend,
    )
    out = torch.empty_like(case.q)
    if shape.kernel == "xqa":
        xqa = XqaDecode(spec, workspace.zero_())
        return lambda: xqa.run(case.q, *caches, case.tables, out=out)
    planner = GroupPlanner(spec, workspace, shape.batch, shape.batch * shape.q_len)
    if shape.kernel == "decode":
        plan = planner.decode(shape.batch, case.tables, cuda_graph=True)
    else:
        plan = planner.prefill(case.tables)
    plan.plan(case.spec.counts(), torch.tensor(case.spec.q_lens))
    return lambda: plan.run(case.q, *caches, out=out)
