"""The reference itself, against torch's attention and against definitions written out."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext import GroupLayout, page_views
from flashinfer_ext.kv_write import Rope
from flashinfer_ext.reference import Mask, attention, paged_attention, rotate


def random_qkv(q: int, k: int, heads: int, group: int, dim: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(q * 1000 + k * 10 + heads)
    shapes = [(q, heads * group, dim), (k, heads, dim), (k, heads, dim)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


@settings(max_examples=30, deadline=None)
@given(
    q_len=st.integers(1, 5),
    more=st.integers(0, 9),
    group=st.sampled_from((1, 2, 3)),
    window=st.sampled_from((-1, 0, 2, 5)),
    chunk=st.sampled_from((0, 3, 8)),
)
def test_attention_equals_torch_under_every_mask(
    q_len: int, more: int, group: int, window: int, chunk: int
) -> None:
    q, k, v = random_qkv(q_len, q_len + more, 2, group, 8)
    positions = torch.arange(q_len + more)
    visible = Mask(True, window, chunk).visible(positions[more:], positions)
    out, _ = attention(q, k, v, visible, scale=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1),
        k.repeat_interleave(group, 1).transpose(0, 1),
        v.repeat_interleave(group, 1).transpose(0, 1),
        attn_mask=visible,
        scale=0.3,
    ).transpose(0, 1)
    torch.testing.assert_close(out, expected)


def test_masks_by_definition() -> None:
    positions = torch.arange(12)
    for mask in (Mask(), Mask(False), Mask(True, 3), Mask(True, -1, 5), Mask(True, 2, 4)):
        visible = mask.visible(positions, positions)
        for query in range(12):
            for key in range(12):
                expected = not mask.causal or key <= query
                expected &= mask.window_left < 0 or query - key <= mask.window_left
                expected &= not mask.chunk_tokens or (
                    query // mask.chunk_tokens == key // mask.chunk_tokens
                )
                assert bool(visible[query, key]) == expected


def test_a_sink_takes_its_share_of_the_weight() -> None:
    q, k, v = random_qkv(1, 3, 1, 2, 4)
    visible = torch.ones(1, 3, dtype=torch.bool)
    sinks = torch.tensor([0.5, -1.0], dtype=torch.float64)
    out, lse = attention(q, k, v, visible, 0.5, sinks=sinks)
    for head in range(2):
        logits = [float(q[0, head] @ k[key, 0]) * 0.5 for key in range(3)]
        total = sum(map(math.exp, logits)) + math.exp(sinks[head])
        expected = sum(math.exp(x) / total * v[i, 0] for i, x in enumerate(logits))
        torch.testing.assert_close(out[0, head], expected)
        assert math.isclose(float(lse[0, head]), math.log(total))


def test_a_soft_cap_bounds_the_logits() -> None:
    q, k, v = random_qkv(2, 4, 1, 1, 4)
    visible = torch.ones(2, 4, dtype=torch.bool)
    _, lse = attention(q * 1e6, k, v, visible, 1.0, soft_cap=2.0)
    assert float(lse.max()) <= 2.0 + math.log(4) + 1e-9


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    q, k, v = random_qkv(1, 2, 1, 1, 4)
    out, lse = attention(q, k, v, torch.zeros(1, 2, dtype=torch.bool), 1.0)
    assert not out.any() and torch.isneginf(lse).all()


@pytest.mark.parametrize("dims", [(8, 8), (8, 4)])
def test_pages_in_any_order_give_what_contiguous_rows_give(dims: tuple[int, int]) -> None:
    torch.manual_seed(3)
    payload = 2 * 4 * 2 * sum(dims) * 4
    layout = GroupLayout(2, 4, 2, *dims, torch.float32, payload + 32)
    buffer = torch.full((layout.small_page_bytes * 9,), 255, dtype=torch.uint8)
    k_cache, v_cache = page_views(buffer, layout, 1)
    assert k_cache.isnan().all(), "foreign pages hold NaN"
    kv_lens, q_lens = [10, 3], [2, 3]
    tables = torch.tensor([[7, 2, 5], [4, 0, 0]])
    keys, values = torch.randn(13, 2, dims[0]), torch.randn(13, 2, dims[1])
    start = 0
    for row, kv_len in zip(tables, kv_lens, strict=True):
        for token in range(kv_len):
            k_cache[row[token // 4], token % 4] = keys[start + token]
            v_cache[row[token // 4], token % 4] = values[start + token]
        start += kv_len
    q = torch.randn(5, 4, dims[0])
    out, _ = paged_attention(q, k_cache, v_cache, tables, kv_lens, q_lens, 0.4)
    parts = []
    for first, kv_len, rows in ((0, 10, q[:2]), (10, 3, q[2:])):
        positions = torch.arange(kv_len)
        visible = Mask().visible(positions[kv_len - len(rows) :], positions)
        own = slice(first, first + kv_len)
        args = (x.double() for x in (rows, keys[own], values[own]))
        parts.append(attention(*args, visible, 0.4)[0])
    torch.testing.assert_close(out, torch.cat(parts))


def test_cross_attention_may_have_more_queries_than_keys() -> None:
    """Five queries over three keys in two pages of two, every query against every key."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 2, 8, generator=generator).double() for n in (5, 4, 4))
    pages = torch.tensor([[1, 0]])
    caches = (rows.view(2, 2, 2, 8) for rows in (k, v))
    out, _ = paged_attention(q, *caches, pages, [3], [5], 0.5, Mask(causal=False))
    order = torch.tensor([2, 3, 0])
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (q, k[order], v[order])), scale=0.5
    )
    torch.testing.assert_close(out, expected.transpose(0, 1))


def test_a_hidden_page_is_a_page_that_is_not_there() -> None:
    torch.manual_seed(4)
    cache = torch.randn(4, 2, 1, 8)
    q = torch.randn(1, 1, 8)
    shown = torch.tensor([[True, False, True]])
    hidden = cache.clone()
    hidden[2] = float("nan")
    tables = torch.tensor([[1, 2, 3]])
    out, _ = paged_attention(q, hidden, hidden, tables, [6], [1], 1.0, page_mask=shown)
    expected, _ = paged_attention(q, cache, cache, torch.tensor([[1, 3]]), [4], [1], 1.0)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_a_complex_product(interleaved: bool) -> None:
    torch.manual_seed(5)
    angles = torch.rand(10, 3) * 6
    rope = Rope(torch.tensor([4, 9]), torch.cat([angles.cos(), angles.sin()], 1), interleaved)
    x = torch.randn(2, 2, 8)
    out = rotate(x, rope)
    assert torch.equal(out[..., 6:], x[..., 6:])
    for pair in range(3):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 3)
        number = torch.complex(x[..., first], x[..., second])
        turned = number * torch.exp(1j * angles[[4, 9], pair])[:, None]
        torch.testing.assert_close(out[..., first], turned.real)
        torch.testing.assert_close(out[..., second], turned.imag)
