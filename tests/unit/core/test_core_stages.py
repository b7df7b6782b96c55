"""One cut of the books for all stages of a pipeline, and each stage's own bytes under it."""

import pytest
from core_builders import UNIT_BYTES, make_geometry

from jenga_sglang.core.cut.geometry import LayerGroupSpec
from jenga_sglang.core.cut.stages import StageCut, stage_cuts, widest
from jenga_sglang.core.dependency import Full, SlidingWindow

PAGE = 16
LAYER_PAGE = PAGE * UNIT_BYTES  # 128 bytes


def spec(layers: range) -> LayerGroupSpec:
    return LayerGroupSpec("g", tuple(layers), Full(), UNIT_BYTES // 2, UNIT_BYTES // 2)


def cuts(
    stages: list[list[LayerGroupSpec | None]],
    budgets: list[int],
    stripes: tuple[int, int] = (1, 1),
) -> list[StageCut]:
    """Two groups; the books are those of two full layers and three with a window."""
    dependencies = (Full(), SlidingWindow(32))
    books = make_geometry(dependencies, 9, page_size=PAGE, layers=[2, 3], stripes=stripes)
    shared, of_stages = stage_cuts(books, stages, budgets)
    for cut in of_stages:
        assert cut.pool_bytes == (shared.num_large_pages + 1) * cut.large_page_bytes
        for g, of_group in enumerate(cut.groups):
            if of_group is not None:
                count = shared.small_per_large(g)
                assert of_group.small_page_bytes * count == cut.large_page_bytes
    return of_stages


def small(cut: StageCut) -> list[int | None]:
    return [of_group and of_group.small_page_bytes for of_group in cut.groups]


def test_the_group_with_most_layers_on_a_stage_sets_its_large_page() -> None:
    """Small pages of 2 and 3 layers: three and two of them in a large page of 768 bytes."""
    full, three, two, one = spec(range(2)), spec(range(2, 5)), spec(range(5, 7)), spec(range(7, 8))
    whole, fewer, least = cuts([[full, three], [full, two], [one, one]], [10_000] * 3)
    assert (whole.large_page_bytes, small(whole)) == (768, [256, 384])
    assert (fewer.large_page_bytes, small(fewer)) == (768, [256, 384])
    assert (least.large_page_bytes, small(least)) == (384, [128, 192])
    assert (whole.padding_share, least.padding_share) == (0, 0)


def test_all_stages_have_as_many_large_pages_as_the_poorest() -> None:
    """12 of 768 bytes, or 20 of 384; the reserved one is among them."""
    full, window, one = spec(range(2)), spec(range(2, 5)), spec(range(5, 6))
    rich, poor = cuts([[full, window], [one, one]], [12 * 768 + 5, 20 * 384])
    assert (rich.pool_bytes, poor.pool_bytes) == (12 * 768, 12 * 384)
    rich, poor = cuts([[full, window], [one, one]], [12 * 768, 11 * 384 + 383])
    assert (rich.pool_bytes, poor.pool_bytes) == (11 * 768, 11 * 384)


def test_a_stage_without_a_layer_of_a_group_has_no_bytes_for_it() -> None:
    lone, other = cuts([[spec(range(2)), None], [None, spec(range(2, 5))]], [10_000] * 2)
    assert small(lone) == [256, None] and lone.large_page_bytes == 3 * 256
    assert small(other) == [None, 384] and other.large_page_bytes == 2 * 384


def test_what_two_small_pages_take_is_rounded_up_until_it_is_three_as_well() -> None:
    """Two pages of 256 bytes would be 512, which three do not divide on boundaries of 16."""
    (cut,) = cuts([[None, spec(range(2))]], [10_000])
    assert (cut.large_page_bytes, small(cut)) == (576, [None, 288])


def test_the_last_stripe_of_a_stage_may_have_fewer_layers() -> None:
    """Three layers where others have four, in two stripes."""
    books = make_geometry((Full(),), 9, page_size=PAGE, layers=[4], stripes=[2])
    _, (cut,) = stage_cuts(books, [[spec(range(3))]], [10_000])
    assert cut.groups[0] is not None and cut.groups[0].layers_per_stripe == 2
    assert small(cut) == [2 * LAYER_PAGE]


def test_stripes_are_as_many_on_every_stage_and_the_last_may_be_empty() -> None:
    """Stripes of one layer each; a stage with two of three layers leaves the third unused."""
    books_of = [[spec(range(2)), spec(range(2, 5))], [spec(range(5, 6)), spec(range(6, 8))]]
    whole, fewer = cuts([list(row) for row in books_of], [10_000] * 2, stripes=(2, 3))
    assert [g and g.layers_per_stripe for g in whole.groups] == [1, 1]
    assert [g and g.stripes for g in fewer.groups] == [2, 3]
    assert small(whole) == small(fewer) == [LAYER_PAGE, LAYER_PAGE]


def test_small_pages_lie_on_boundaries_whatever_a_stage_has() -> None:
    """One layer of three tokens of 8 bytes: 24 bytes, in small pages of 32."""
    books = make_geometry((Full(), Full()), 9, page_size=3, layers=[2, 4])
    one = spec(range(1))
    _, (cut,) = stage_cuts(books, [[one, None]], [10_000])
    assert cut.groups[0] is not None and cut.groups[0].small_page_bytes == 32
    assert cut.padding_share == pytest.approx(0.25)


def test_a_budget_without_room_for_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="no room for one large page"):
        cuts([[spec(range(2)), spec(range(2, 5))]], [2 * 768 - 1])


def test_of_one_groups_layers_the_most_count() -> None:
    assert widest([spec(range(1)), None, spec(range(1, 4)), spec(range(4, 7))]) == spec(range(1, 4))
