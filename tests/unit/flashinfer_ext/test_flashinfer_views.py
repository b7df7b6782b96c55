"""Every view names the bytes that the layout's formula names, and no others."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext import GroupLayout, block_views, latent_views, page_views, row_views

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)


@st.composite
def layouts(draw: st.DrawFn) -> GroupLayout:
    numbers = {name: draw(st.integers(1, 4)) for name in ("num_layers", "num_kv_heads")}
    tokens = draw(st.sampled_from((1, 2, 3, 4, 8)))
    dim_k = draw(st.integers(1, 9))
    dim_v = draw(st.one_of(st.just(dim_k), st.integers(0, 9)))
    dtype = draw(st.sampled_from(DTYPES))
    payload = numbers["num_layers"] * tokens * numbers["num_kv_heads"] * (dim_k + dim_v)
    padding = draw(st.integers(0, 5))
    return GroupLayout(
        page_size_tokens=tokens,
        head_dim_k=dim_k,
        head_dim_v=dim_v,
        dtype=dtype,
        small_page_bytes=(payload + padding) * dtype.itemsize,
        **numbers,
    )


def byte_of(layout: GroupLayout, page: int, layer: int, is_v: bool, token: int) -> int:
    """First byte of a row, written out from the picture in layout.py."""
    row_k = layout.num_kv_heads * layout.head_dim_k * layout.dtype.itemsize
    row_v = layout.num_kv_heads * layout.head_dim_v * layout.dtype.itemsize
    start = page * layout.small_page_bytes + layer * layout.page_size_tokens * (row_k + row_v)
    if is_v:
        return start + layout.page_size_tokens * row_k + token * row_v
    return start + token * row_k


def random_buffer(layout: GroupLayout, pages: int, rest: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (layout.small_page_bytes * pages + rest,), dtype=torch.uint8)


def same_bytes(rows: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(rows.contiguous().view(torch.uint8).flatten(), expected)


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), pages=st.integers(0, 4), data=st.data())
def test_every_row_of_every_view_is_where_the_formula_says(
    layout: GroupLayout, pages: int, data: st.DataObject
) -> None:
    rest = data.draw(st.integers(0, layout.small_page_bytes - 1))
    buffer = random_buffer(layout, pages, rest)
    for layer in range(layout.num_layers):
        views = page_views(buffer, layout, layer)
        rows = row_views(buffer, layout, layer) if layout.has_row_grid else None
        blocks = block_views(buffer, layout, layer) if layout.has_block_grid else None
        for is_v, view in enumerate(views):
            row_bytes = (layout.k_row_bytes, layout.v_row_bytes)[is_v]
            assert view.shape[0] == pages
            for page in range(pages):
                for token in range(layout.page_size_tokens):
                    start = byte_of(layout, page, layer, bool(is_v), token)
                    expected = buffer[start : start + row_bytes]
                    assert same_bytes(view[page, token], expected)
                    if rows:
                        row = rows[is_v][page * layout.rows_per_page + token]
                        assert same_bytes(row, expected)
                    if blocks:
                        block = blocks[is_v][page * layout.blocks_per_page]
                        assert same_bytes(block[token], expected)


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), pages=st.integers(1, 4))
def test_no_view_leaves_the_buffer(layout: GroupLayout, pages: int) -> None:
    buffer = random_buffer(layout, pages)
    end = buffer.data_ptr() + buffer.numel()
    makers = [page_views]
    makers += [row_views] if layout.has_row_grid else []
    makers += [block_views] if layout.has_block_grid else []
    for make in makers:
        for view in make(buffer, layout, layout.num_layers - 1):
            if view.numel():
                last = sum((n - 1) * s for n, s in zip(view.shape, view.stride(), strict=True))
                assert view.data_ptr() + (last + 1) * layout.itemsize <= end


@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_rows_and_blocks_are_contiguous_or_refused(layout: GroupLayout) -> None:
    buffer = random_buffer(layout, 3)
    for grid, make in ((layout.has_row_grid, row_views), (layout.has_block_grid, block_views)):
        if grid:
            assert all(view.is_contiguous() for view in make(buffer, layout, 0))
        else:
            with pytest.raises(ValueError, match="expected"):
                make(buffer, layout, 0)


def test_unpadded_pages_have_the_multipliers_of_the_picture() -> None:
    payload = 5 * 2 * 16 * 8 * 128 * 2
    layout = GroupLayout(5, 16, 8, 128, 128, torch.bfloat16, payload)
    assert layout.rows_per_page == 2 * 5 * 16
    assert layout.blocks_per_page == 2 * 5
    assert layout.page_stride_elements == payload // 2


def test_padding_by_whole_rows_keeps_the_row_grid_and_loses_the_block_grid() -> None:
    row = 2 * 64 * 2
    layout = GroupLayout(3, 4, 2, 64, 64, torch.bfloat16, 3 * 2 * 4 * row + row)
    assert layout.rows_per_page == 25
    assert not layout.has_block_grid


def test_a_view_of_a_slice_starts_at_the_slice() -> None:
    layout = GroupLayout(2, 2, 1, 8, 8, torch.bfloat16, 128)
    whole = random_buffer(layout, 4)
    part = whole[128:]
    assert same_bytes(page_views(part, layout, 1)[1][0, 0], whole[128 + 96 : 128 + 112])
    assert same_bytes(row_views(part, layout, 1)[1][0], whole[128 + 96 : 128 + 112])


def test_latent_views_split_one_row() -> None:
    layout = GroupLayout(2, 4, 1, 576, 0, torch.bfloat16, 2 * 4 * 576 * 2)
    buffer = random_buffer(layout, 3)
    latent, rope = latent_views(buffer, layout, 1, rope_dim=64)
    rows = page_views(buffer, layout, 1)[0].squeeze(2)
    assert latent.shape == (3, 4, 512) and rope.shape == (3, 4, 64)
    joined = torch.cat([latent.view(torch.int16), rope.view(torch.int16)], dim=-1)
    assert torch.equal(joined, rows.view(torch.int16))


def test_latent_views_refuse_a_cache_with_values() -> None:
    layout = GroupLayout(1, 4, 1, 8, 8, torch.bfloat16, 128)
    with pytest.raises(ValueError, match="head_dim_v 0"):
        latent_views(random_buffer(layout, 1), layout, 0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected >= 1, got 0"),
        ({"head_dim_v": -1}, "head_dim_v: expected >= 0"),
        ({"dtype": torch.int8}, "dtype: expected"),
        ({"small_page_bytes": 127}, "expected >= payload 128, got 127"),
        ({"small_page_bytes": 129}, "expected a multiple of itemsize 2, got 129"),
    ],
)
def test_impossible_layouts_are_refused(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "num_layers": 2,
        "page_size_tokens": 2,
        "num_kv_heads": 1,
        "head_dim_k": 8,
        "head_dim_v": 8,
        "dtype": torch.bfloat16,
        "small_page_bytes": 128,
    }
    with pytest.raises(ValueError, match=message):
        GroupLayout(**(fields | change))


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(256, dtype=torch.int8),
        torch.zeros((2, 128), dtype=torch.uint8),
        torch.zeros(512, dtype=torch.uint8)[::2],
        torch.zeros(257, dtype=torch.uint8)[1:],
    ],
)
def test_buffers_that_are_not_flat_aligned_bytes_are_refused(buffer: torch.Tensor) -> None:
    layout = GroupLayout(2, 2, 1, 8, 8, torch.bfloat16, 128)
    with pytest.raises(ValueError, match="buffer: expected"):
        page_views(buffer, layout, 0)


def test_a_layer_that_is_not_there_is_refused() -> None:
    layout = GroupLayout(2, 2, 1, 8, 8, torch.bfloat16, 128)
    with pytest.raises(ValueError, match="layer < 2, got 2"):
        page_views(random_buffer(layout, 1), layout, 2)
