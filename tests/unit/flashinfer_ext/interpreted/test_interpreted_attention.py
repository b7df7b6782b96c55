"""From new tokens to attention: our writes and tables, read by others.

Every page starts as NaN, pages are out of order, groups trim their history. What a kernel computes
from the tables must be what the reference computes from all tokens.
"""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd

from flashinfer_ext import GroupLayout
from flashinfer_ext.plan import query_offsets
from flashinfer_ext.reference import csr_attention
from flashinfer_ext.testing import CaseSpec, PagedCase

SPLITS = 2


@st.composite
def cases(draw: st.DrawFn, view: str, decode: bool) -> PagedCase:
    tokens = draw(st.sampled_from((1, 4)))
    row_bytes = 2 * 16 * 4
    # A page is padded by one row: the row grid survives.
    layout = GroupLayout(2, tokens, 2, 16, 16, torch.float32, (2 * 2 * tokens + 1) * row_bytes)
    kv_lens = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    spec = CaseSpec(
        layout,
        tuple(kv_lens),
        tuple(1 if decode else draw(st.integers(1, n)) for n in kv_lens),
        num_qo_heads=4,
        window_left=draw(st.sampled_from((-1, 0, 6, 17))),
        # Chunks need no mask only where all queries of a request lie in one chunk.
        chunk_tokens=draw(st.sampled_from((0, 8))) if decode else 0,
        view=view,
        layer=1,
        seed=draw(st.integers(0, 10**6)),
    )
    case = PagedCase(spec, "cpu")
    case.build()
    case.write()
    return case


def sglang_decode(case: PagedCase) -> torch.Tensor:
    batch, heads, dim = case.q.shape
    out = torch.empty_like(case.q)
    partial = torch.empty(batch, heads, SPLITS, dim)
    lse = torch.empty(batch, heads, SPLITS)
    splits = torch.full((batch,), SPLITS, dtype=torch.int32)
    arrays = (case.tables.indptr, case.tables.indices[0], partial, lse, splits, SPLITS)
    decode_attention_fwd(case.q, *case.views(), out, *arrays, case.spec.scale, 1.0, 1.0)
    return out


# Empty splits of the kernel subtract infinities.
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@settings(max_examples=10, deadline=None)
@given(case=cases("row", decode=True))
def test_sglangs_decode_kernel_reads_row_views_and_token_tables(case: PagedCase) -> None:
    out = sglang_decode(case)
    torch.testing.assert_close(out.double(), case.expected(), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), view=st.sampled_from(("page", "row")), decode=st.booleans())
def test_trimmed_tables_mean_the_same_by_flashinfers_conventions(
    data: st.DataObject, view: str, decode: bool
) -> None:
    case = data.draw(cases(view, decode))
    counts, tables = case.spec.counts(), case.tables
    caches = [c.unsqueeze(1) if c.dim() == 3 else c for c in case.views()]
    out = csr_attention(
        case.q,
        *caches,
        query_offsets(len(case.spec.q_lens), torch.tensor(case.spec.q_lens)).tolist(),
        tables.indptr.tolist(),
        tables.indices[0],
        counts.last_page_len_cpu.tolist(),
        case.spec.scale,
        case.spec.window_left,
    )
    torch.testing.assert_close(out, case.expected())
