"""The planner on the real shapes of every model in `tests/configs`."""

import itertools
from functools import cache

import pytest
from plan_configs import GIB, KIB, MIB, NAMES, load

from jenga_sglang.core.cut.demand import ideal_bytes, small_pages
from jenga_sglang.core.cut.geometry import LayerGroupSpec, exact_lcm
from jenga_sglang.core.cut.planner import LARGEST_PAGE_BYTES, Plan, default_page_size, plan_geometry
from jenga_sglang.core.cut.search import Limits
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow

POOL_BYTES = 40 * GIB
LENGTHS = (4096, 32768, 131072)
# Windows as configured, so that every window and page size there is gets planned.
OPTIONS = {"window": "config"}


@cache
def planned(
    name: str,
    page_size: int = 16,
    pool_bytes: int = POOL_BYTES,
    max_length: int | None = None,
) -> Plan:
    model = load(name, **OPTIONS, max_length=max_length)
    length = model.max_length + model.image_tokens
    return plan_geometry(model.specs, pool_bytes=pool_bytes, max_length=length, page_size=page_size)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("name", NAMES)
def test_large_pages_keep_to_the_bound(name: str, page_size: int) -> None:
    plan = planned(name, page_size)
    assert plan.bound_bytes == 32 * MIB
    assert plan.geometry.large_page_bytes <= plan.bound_bytes


@pytest.mark.parametrize("name", NAMES)
def test_small_pages_divide_the_large_page_and_are_aligned(name: str) -> None:
    geometry = planned(name).geometry
    for index, group in enumerate(geometry.groups):
        # Of 16 numbers of two bytes, so that K and V are written in whole vectors.
        assert group.small_page_bytes % 32 == 0
        assert geometry.small_per_large(index) * group.small_page_bytes == geometry.large_page_bytes
        assert 0 <= group.padding_bytes <= group.payload_bytes / 32


@pytest.mark.parametrize("name", NAMES)
def test_rows_stay_on_one_grid(name: str) -> None:
    for group in planned(name).geometry.groups:
        if group.spec.k_bytes and group.spec.v_bytes in (0, group.spec.k_bytes):
            assert group.small_page_bytes % group.spec.k_bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_a_place(name: str) -> None:
    plan, specs = planned(name), load(name, **OPTIONS).specs
    for group, (index, part) in zip(plan.geometry.groups, plan.origins, strict=True):
        assert group.spec.layers == specs[index].layers
        assert group.stripes * group.layers_per_stripe == len(group.spec.layers)
        if part is not None:
            assert group.spec.state_bytes == (specs[index].state_bytes[part],)


@pytest.mark.parametrize("max_length", [None, max(LENGTHS)], ids=["own-length", "128k"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_load_wastes_at_most_2_percent(name: str, max_length: int | None) -> None:
    """Requests of 4k, 32k and 128k tokens in turn, each in large pages of its own, until the
    next does not fit: what their pages do not hold is at most 2 % of the pool. Lengths beyond
    the model's count as its own, or else the model is taken to be as long."""
    plan = planned(name, max_length=max_length)
    model = load(name, **OPTIONS, max_length=max_length)
    geometry = plan.geometry
    lengths = sorted({min(n, model.max_length) + model.image_tokens for n in LENGTHS})
    free, taken, held_bytes = geometry.num_large_pages, 0, 0
    for length in itertools.cycle(lengths):
        large = 0
        for index, group in enumerate(geometry.groups):
            large += -(-small_pages(group, length) // geometry.small_per_large(index))
        if large > free:
            break
        free, taken = free - large, taken + large
        held_bytes += sum(small_pages(g, length) * g.payload_bytes for g in geometry.groups)
    assert taken > 0
    reserved_bytes = geometry.pool_bytes - geometry.num_large_pages * geometry.large_page_bytes
    waste_bytes = taken * geometry.large_page_bytes - held_bytes + reserved_bytes
    assert waste_bytes <= 0.02 * geometry.pool_bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_chosen_cut_is_the_cheapest_that_is_allowed(name: str) -> None:
    plan = planned(name)
    allowed = [c for c in plan.candidates if not plan.why_not(c)]
    assert plan.chosen in allowed
    assert plan.chosen.cost.total <= min(c.cost.total for c in allowed) + 2e-4


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "gemma-2-27b", "gpt-oss-120b"])
def test_the_exact_lcm_is_taken_where_it_is_best(name: str) -> None:
    plan = planned(name)
    assert plan.chosen.is_exact_lcm
    assert plan.geometry == exact_lcm(load(name).specs, 16, POOL_BYTES)


def test_planning_costs_less_than_the_exact_lcm_where_that_explodes() -> None:
    exploded = [name for name in NAMES if planned(name).exact_lcm.large_page_bytes > 32 * MIB]
    assert {"gemma-3-27b", "qwen3.5-27b", "kimi-linear-48b", "falcon-h1-7b"} <= set(exploded)
    for name in exploded:
        plan = planned(name)
        assert plan.chosen.cost.total < plan.exact_lcm.cost.total
        assert plan.why_not(plan.exact_lcm) == "its large page exceeds the bound"


def test_qwen3_5_27b_plans_well_inside_374_mib() -> None:
    """Its published exact LCM, 391.5 MiB, does not even start here; ours serves a request."""
    specs = load("qwen3.5-27b").specs
    plan = plan_geometry(
        specs, pool_bytes=374 * MIB, max_length=262144, page_size=16, lengths=(1024, 2048)
    )
    geometry = plan.geometry
    assert geometry.large_page_bytes < 4 * MIB
    needed = sum(ideal_bytes(spec, 2048) for spec in specs)
    taken = 0
    for index, group in enumerate(geometry.groups):
        taken += -(-small_pages(group, 2048) // geometry.small_per_large(index))
    assert taken <= geometry.num_large_pages
    assert taken * geometry.large_page_bytes <= 1.03 * needed


def test_a_bound_that_cannot_be_kept_is_raised_and_said() -> None:
    plan = planned("qwen3.5-27b", pool_bytes=1 * GIB)
    assert plan.wanted_bound_bytes == 2 * MIB
    assert 3 * MIB <= plan.geometry.large_page_bytes <= plan.bound_bytes < 4 * MIB
    assert any("the bound is raised to" in line for line in plan.explain())


def test_the_bound_may_be_given() -> None:
    specs = load("gemma-3-27b").specs
    limits = Limits(large_page_bytes=600 * KIB)
    plan = plan_geometry(specs, pool_bytes=40 * GIB, max_length=131072, page_size=16, limits=limits)
    assert plan.geometry.large_page_bytes <= 600 * KIB


def test_a_pool_without_room_for_two_large_pages_is_an_error() -> None:
    with pytest.raises(ValueError, match="no room for one large page"):
        planned("llama-3.1-8b", pool_bytes=64 * KIB)


def test_no_group_or_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected groups"):
        plan_geometry((), pool_bytes=GIB, max_length=1024)
    with pytest.raises(ValueError, match="expected groups"):
        plan_geometry(load("llama-3.1-8b").specs, pool_bytes=GIB, max_length=1024, lengths=())


def test_a_window_longer_than_the_model_is_planned_as_full() -> None:
    spec = LayerGroupSpec("w", (0, 1), SlidingWindow(4096), 64, 64)
    plan = plan_geometry((spec,), pool_bytes=GIB, max_length=4096, page_size=16)
    assert plan.geometry.groups[0].spec.dependency == Full()


def test_the_parts_of_a_state_are_split_only_when_that_is_allowed() -> None:
    """A convolution of 1 KiB beside a temporal state of exactly 16 rows: together they divide
    nothing without padding, apart both do."""
    specs = (
        LayerGroupSpec("full", (0,), Full(), 2048, 2048),
        LayerGroupSpec("state", (1,), LastState(), state_bytes=(1024, 65536)),
    )
    limits = Limits(large_page_bytes=65536, max_padding=0.0, split_states=True)
    plan = plan_geometry(specs, pool_bytes=GIB, max_length=4096, page_size=16, limits=limits)
    assert plan.origins == ((0, None), (1, 0), (1, 1))
    assert [g.small_page_bytes for g in plan.geometry.groups] == [65536, 1024, 65536]
    served = plan_geometry(specs, pool_bytes=GIB, max_length=4096, page_size=16)
    assert all(len(candidate.groups) == 2 for candidate in served.candidates)


def test_rows_leave_their_grid_only_when_that_is_allowed() -> None:
    """Rows of 1,000 bytes: a page on a 16-byte grid holds whole rows only by the pair."""
    spec = LayerGroupSpec("full", (0,), Full(), 1000, 1000)
    kept = plan_geometry((spec,), pool_bytes=GIB, max_length=4096, page_size=1)
    lost = plan_geometry(
        (spec,), pool_bytes=GIB, max_length=4096, page_size=1, limits=Limits(keep_row_grid=False)
    )
    assert kept.geometry.large_page_bytes == 2000
    assert lost.geometry.large_page_bytes == 2000
    odd = LayerGroupSpec("full", (0,), Full(), 1001, 1001)
    kept = plan_geometry((odd,), pool_bytes=GIB, max_length=4096, page_size=1)
    lost = plan_geometry(
        (odd,), pool_bytes=GIB, max_length=4096, page_size=1, limits=Limits(keep_row_grid=False)
    )
    assert kept.geometry.large_page_bytes % 1001 == 0
    assert lost.geometry.large_page_bytes == 2016


def test_the_plan_explains_itself() -> None:
    lines = planned("gemma-3-27b").explain()
    assert lines[0] == ("2 groups, 12,602 large pages of 3.25 MiB, 16 tokens a page, 7 page tables")
    assert lines[1] == (
        "  window 1024: 52 layers in 2 stripes, window 1024, small page 3.25 MiB, 1 in a large page"
    )
    assert lines[3].startswith("chosen:   stripes 2/5, large page 3.25 MiB")
    assert lines[-1].endswith("its large page exceeds the bound")
    assert "(exact LCM)" in lines[-1]


def test_pages_are_smaller_where_one_of_all_groups_would_be_too_large() -> None:
    row = LARGEST_PAGE_BYTES // (16 * 8)  # of eight layers
    full = LayerGroupSpec("full", (0, 1), Full(), row // 2, row // 2)
    window = LayerGroupSpec("window", tuple(range(2, 8)), SlidingWindow(64), row // 2, row // 2)
    wider = LayerGroupSpec("window", window.layers, SlidingWindow(64), row // 2 + 1, row // 2)
    assert default_page_size([full, window]) == 16
    assert default_page_size([full, wider]) == 8
    assert default_page_size([full]) == 8
