"""The cut of a pool, with the numbers of a real model."""

import dataclasses

import pytest
from core_builders import make_geometry

from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec, exact_lcm
from jenga_sglang.core.dependency import Full, SlidingWindow

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
ROW_BYTES = 16 * 128 * 2  # heads x head_dim x bf16

FULL_LAYERS = tuple(layer for layer in range(62) if layer % 6 == 5)
WINDOW_LAYERS = tuple(layer for layer in range(62) if layer % 6 != 5)
GEMMA_3_27B = (
    LayerGroupSpec("full", FULL_LAYERS, Full(), ROW_BYTES, ROW_BYTES),
    LayerGroupSpec("window", WINDOW_LAYERS, SlidingWindow(1024), ROW_BYTES, ROW_BYTES),
)


def test_gemma_3_27b_has_small_pages_of_1280_and_6656_kib() -> None:
    assert (len(FULL_LAYERS), len(WINDOW_LAYERS)) == (10, 52)
    full, window = exact_lcm(GEMMA_3_27B, 16, GIB).groups
    assert full.small_page_bytes == 1_280 * KIB
    assert window.small_page_bytes == 6_656 * KIB


def test_gemma_3_27b_has_a_large_page_of_26_full_or_5_window_pages() -> None:
    geometry = exact_lcm(GEMMA_3_27B, 16, GIB)
    assert geometry.large_page_bytes == 32.5 * MIB
    assert (geometry.small_per_large(0), geometry.small_per_large(1)) == (26, 5)


def test_the_reserved_large_page_is_not_handed_out() -> None:
    """1 GiB holds 31 large pages of 32.5 MiB and a rest that stays unused."""
    geometry = exact_lcm(GEMMA_3_27B, 16, GIB)
    assert geometry.num_large_pages == 30
    assert (geometry.max_pages(0), geometry.max_pages(1)) == (780, 150)


def test_stripes_of_two_layers_make_every_small_page_of_gemma_3_27b_alike() -> None:
    groups = (GroupGeometry(GEMMA_3_27B[0], 16, 5), GroupGeometry(GEMMA_3_27B[1], 16, 26))
    geometry = Geometry(groups, 16, GIB)
    assert {g.small_page_bytes for g in groups} == {256 * KIB}
    assert geometry.large_page_bytes == 256 * KIB
    assert [g.page_bytes for g in groups] == [1_280 * KIB, 6_656 * KIB]
    assert geometry.max_pages(1) == (4096 - 1) // 26


def test_padding_fills_the_end_of_a_small_page() -> None:
    spec = LayerGroupSpec("g", (0, 1, 2), Full(), 4, 4)
    plain, padded = GroupGeometry(spec, 4), GroupGeometry(spec, 4, padding_bytes=32)
    assert (plain.small_page_bytes, padded.small_page_bytes) == (96, 128)


def test_keys_and_values_may_have_rows_of_unequal_size() -> None:
    spec = LayerGroupSpec("g", (0, 1), Full(), 12, 4)
    assert (spec.row_bytes, spec.bytes_per_token) == (16, 32)


def test_a_pool_is_resized_without_another_cut() -> None:
    geometry = make_geometry([Full(), SlidingWindow(4)], 10, layers=[2, 3])
    smaller = geometry.resized(geometry.large_page_bytes * 4)
    assert smaller.num_large_pages == 3
    assert smaller.groups == geometry.groups


def test_unequal_stripes_are_refused() -> None:
    with pytest.raises(ValueError, match="10 layers do not split into 4 equal stripes"):
        GroupGeometry(GEMMA_3_27B[0], 16, 4)


def test_layers_must_be_named_once_and_in_order() -> None:
    for layers in ((), (1, 0), (0, 0)):
        with pytest.raises(ValueError, match="expected ascending layer ids"):
            LayerGroupSpec("g", layers, Full(), 4, 4)


def test_a_group_needs_a_row_to_store() -> None:
    with pytest.raises(ValueError, match="expected k_bytes > 0"):
        LayerGroupSpec("g", (0,), Full(), 0, 4)


def test_a_pool_without_room_for_a_large_page_is_refused() -> None:
    geometry = make_geometry([Full()], 1)
    with pytest.raises(ValueError, match="no room for one large page"):
        geometry.resized(2 * geometry.large_page_bytes - 1)


def test_a_pool_has_groups_of_one_page_size() -> None:
    geometry = make_geometry([Full()], 4)
    with pytest.raises(ValueError, match="at least one layer group"):
        dataclasses.replace(geometry, groups=())
    with pytest.raises(ValueError, match="one page_size for all groups"):
        dataclasses.replace(geometry, page_size=2)
    with pytest.raises(ValueError, match="page_size >= 1"):
        dataclasses.replace(geometry, page_size=0)
