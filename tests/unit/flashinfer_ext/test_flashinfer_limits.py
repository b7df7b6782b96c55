"""Start-up checks name every limit that a kernel would break in silence."""

import pytest
import torch

from flashinfer_ext import GroupLayout, check_kernel_limits, require_kernel_limits
from flashinfer_ext.limits import KERNELS


def layout_of(**change: object) -> GroupLayout:
    """Two layers of 16 tokens, 2 heads of 128, bf16, unless changed."""
    fields: dict[str, object] = {
        "num_layers": 2,
        "page_size_tokens": 16,
        "num_kv_heads": 2,
        "head_dim_k": 128,
        "head_dim_v": 128,
        "dtype": torch.bfloat16,
    } | change
    if "small_page_bytes" not in fields:
        sizes = [fields[name] for name in ("num_layers", "page_size_tokens", "num_kv_heads")]
        row = (fields["head_dim_k"] + fields["head_dim_v"]) * fields["dtype"].itemsize
        fields["small_page_bytes"] = sizes[0] * sizes[1] * sizes[2] * row
    return GroupLayout(**fields)


def pool(layout: GroupLayout, pages: int = 2) -> torch.Tensor:
    """A buffer without memory: limits need its size and address only."""
    return torch.empty(layout.small_page_bytes * pages, dtype=torch.uint8, device="meta")


def problems(layout: GroupLayout, *kernels: str, pages: int = 2) -> str:
    return "; ".join(check_kernel_limits(pool(layout, pages), layout, kernels))


def test_a_common_layout_suits_every_kernel_but_the_latent_one() -> None:
    layout = layout_of()
    assert problems(layout, *(name for name, limits in KERNELS.items() if not limits.latent)) == ""


def test_a_latent_layout_suits_the_latent_kernel() -> None:
    layout = layout_of(num_kv_heads=1, head_dim_k=576, head_dim_v=0)
    assert problems(layout, "mla", "fa3_kvcache_mla", "row", "block") == ""


@pytest.mark.parametrize(
    ("change", "kernel", "message"),
    [
        ({"head_dim_v": 64}, "fa2_decode", "equal K and V strides"),
        ({"head_dim_v": 64}, "fa3_prefill", "equal K and V strides"),
        ({"head_dim_v": 64}, "row", "no row grid"),
        ({"head_dim_k": 80, "head_dim_v": 80}, "fa2_decode", "head_dim: expected one of"),
        ({"head_dim_k": 512, "head_dim_v": 512}, "fa3_prefill", "head_dim: expected one of"),
        ({"page_size_tokens": 8}, "xqa", "page_size_tokens: expected one of"),
        ({"page_size_tokens": 128}, "trtllm_gen", "page_size_tokens: expected one of"),
        ({"dtype": torch.float32}, "fa2_prefill", "dtype: expected one of"),
        ({"small_page_bytes": 2**15 + 16}, "xqa", "multiple of head_dim 128"),
        ({"small_page_bytes": 2**15 + 16}, "row", "no row grid"),
        ({"small_page_bytes": 2**15 + 512}, "block", "no block grid"),
        ({}, "mla", "expected a latent cache"),
        ({"page_size_tokens": 128}, "fa3_kvcache", "page_size_tokens: expected one of"),
        ({"dtype": torch.float8_e4m3fn}, "fa3_kvcache", "dtype: expected one of"),
    ],
)
def test_a_kernel_refuses_what_it_would_misread(
    change: dict[str, object], kernel: str, message: str
) -> None:
    assert message in problems(layout_of(**change), kernel)


def test_unequal_strides_suit_the_prefill_kernel() -> None:
    assert problems(layout_of(head_dim_v=64), "fa2_prefill", "triton") == ""


@pytest.mark.parametrize("size", [2**15 + 8, 2**15 + 2])
def test_pages_off_the_16_byte_grid_are_named(size: int) -> None:
    assert "small_page_bytes: expected a multiple of 16" in problems(
        layout_of(small_page_bytes=size)
    )


def test_a_misaligned_buffer_is_named() -> None:
    layout = layout_of(num_layers=1, num_kv_heads=1, page_size_tokens=1)
    buffer = torch.zeros(4096, dtype=torch.uint8)
    shift = (16 - buffer.data_ptr() % 16) % 16 + 2
    found = check_kernel_limits(buffer[shift:], layout, ())
    assert any(text.startswith("buffer address") for text in found)


def test_a_page_stride_of_two_to_the_31_elements_is_named() -> None:
    layout = layout_of(small_page_bytes=2**32)
    assert "page stride in elements: expected below 2**31" in problems(layout)
    assert "page stride" not in problems(layout_of(small_page_bytes=2**32 - 2**15))


def test_index_ranges_are_checked_per_view() -> None:
    layout = layout_of()
    pages = 2**31 // layout.rows_per_page
    assert "row index: expected below 2**31" in problems(layout, "row", pages=pages)
    assert problems(layout, "row", pages=pages - 1) == ""
    assert problems(layout, "block", "fa2_decode", pages=pages) == ""


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel: expected one of"):
        problems(layout_of(), "fa9")


def test_require_raises_with_every_problem() -> None:
    layout = layout_of(head_dim_v=64, page_size_tokens=8)
    with pytest.raises(ValueError, match=r"xqa: page_size.*; xqa: expected equal"):
        require_kernel_limits(pool(layout), layout, ("xqa",))
