"""Properties of the planner on groups that no model has."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from jenga_sglang.core.cut.geometry import LayerGroupSpec
from jenga_sglang.core.cut.planner import plan_geometry
from jenga_sglang.core.cut.search import SLACK, Limits
from jenga_sglang.core.dependency import (
    ChunkedLocal,
    DecoderTokens,
    Dependency,
    EncoderTokens,
    Full,
    LastState,
    SlidingWindow,
    check_legal,
)
from jenga_sglang.core.ranges import page_ranges

GIB = 1 << 30

dependencies: st.SearchStrategy[Dependency] = st.one_of(
    st.just(Full()),
    st.builds(SlidingWindow, st.integers(1, 9000), st.integers(0, 64)),
    st.builds(ChunkedLocal, st.integers(1, 9000)),
    st.builds(EncoderTokens, st.integers(0, 9000)),
)
row_bytes = st.one_of(
    st.sampled_from([256, 512, 1024, 1152, 1280, 2048, 4096]), st.integers(1, 5000)
)


@st.composite
def groups_of_layers(draw: st.DrawFn) -> tuple[LayerGroupSpec, ...]:
    found: list[LayerGroupSpec] = []
    first = 0
    for index in range(draw(st.integers(1, 4))):
        layers = tuple(range(first, first + draw(st.integers(1, 64))))
        first += len(layers)
        if draw(st.booleans()):
            k_bytes = draw(row_bytes)
            v_bytes = draw(st.one_of(st.just(k_bytes), st.just(0), row_bytes))
            found.append(LayerGroupSpec(str(index), layers, draw(dependencies), k_bytes, v_bytes))
        else:
            parts = tuple(draw(st.lists(st.integers(1, 4 << 20), min_size=1, max_size=2)))
            found.append(LayerGroupSpec(str(index), layers, LastState(), state_bytes=parts))
    return tuple(found)


@settings(max_examples=40, deadline=None)
@given(groups_of_layers(), st.sampled_from([1, 16, 64]), st.sampled_from([None, 1 << 20]))
def test_a_plan_keeps_to_its_limits(
    specs: tuple[LayerGroupSpec, ...], page_size: int, bound: int | None
) -> None:
    limits = Limits(large_page_bytes=bound)
    arguments = {"pool_bytes": 4096 * GIB, "max_length": 8192, "limits": limits}
    plan = plan_geometry(specs, page_size=page_size, **arguments)
    assert plan == plan_geometry(specs, page_size=page_size, **arguments)
    geometry = plan.geometry
    assert geometry.large_page_bytes <= plan.bound_bytes
    if plan.bound_bytes > plan.wanted_bound_bytes:
        allowed = [c.large_page_bytes for c in plan.candidates if not plan.why_not(c)]
        assert plan.bound_bytes <= SLACK * min(allowed)
    for group in geometry.groups:
        assert geometry.large_page_bytes % group.small_page_bytes == 0
        assert group.small_page_bytes % 16 == 0
        unit = math.lcm(16, max(1, group.spec.k_bytes))
        allowed_padding = max(group.payload_bytes / 32, unit - 1)
        assert 0 <= group.padding_bytes <= allowed_padding
    layers = [group.spec.layers for group in geometry.groups]
    assert [specs[index].layers for index, _ in plan.origins] == layers


short_dependencies: st.SearchStrategy[Dependency] = st.one_of(
    st.just(Full()),
    st.just(LastState()),
    st.builds(SlidingWindow, st.integers(1, 60), st.integers(0, 20)),
    st.builds(ChunkedLocal, st.integers(1, 60)),
    st.builds(EncoderTokens, st.integers(0, 60)),
    st.builds(DecoderTokens, st.integers(0, 60)),
)


@given(short_dependencies, st.integers(0, 200), st.sampled_from([1, 4, 16]))
def test_peak_pages_bound_what_a_history_ever_holds(
    dependency: Dependency, length: int, page_size: int
) -> None:
    """A running history lets go behind its last whole page and holds everything from there on."""
    peak = dependency.peak_pages(length, page_size)
    for now in range(length + 1):
        whole = now // page_size
        held = pages_needed(dependency, whole * page_size, page_size)
        front = set(range(whole, -(-now // page_size)))
        if isinstance(dependency, EncoderTokens | DecoderTokens):
            front &= pages_needed(dependency, now, page_size)
        if isinstance(dependency, LastState) and front:
            held = set()  # a state moves on in place
        assert len(held | front) <= peak


def pages_needed(dependency: Dependency, length: int, page_size: int) -> set[int]:
    ranges = page_ranges(dependency.needed(length), page_size)
    return {page for pages in ranges for page in range(*pages)}


@given(st.sampled_from([LastState(), EncoderTokens(5), EncoderTokens(0)]), st.data())
def test_new_dependencies_are_legal(dependency: Dependency, data: st.DataObject) -> None:
    check_legal(dependency, data.draw(st.lists(st.integers(0, 64), max_size=8)))
