"""The longest hit against brute force over all lengths."""

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given, settings

from jenga_sglang.core.dependency import (
    ChunkedLocal,
    DecoderTokens,
    Dependency,
    EncoderTokens,
    Full,
    LastState,
    SlidingWindow,
)
from jenga_sglang.core.hit import longest_hit
from jenga_sglang.core.ranges import Range, page_ranges

NUM_PAGES = 12


def dependencies(page_size: int) -> st.SearchStrategy[Dependency]:
    size = st.integers(1, NUM_PAGES * page_size)
    return st.one_of(
        st.just(Full()),
        st.just(LastState()),
        st.builds(SlidingWindow, size),
        st.builds(SlidingWindow, size, size),
        st.builds(ChunkedLocal, size),
        st.builds(EncoderTokens, size),
        st.builds(DecoderTokens, size),
    )


@st.composite
def caches(draw: st.DrawFn) -> tuple[int, list[Dependency], list[set[int]]]:
    """A page size, groups, and the pages that each group holds; holes are rare."""
    page_size = draw(st.sampled_from((1, 2, 3, 4)))
    groups = draw(st.lists(dependencies(page_size), min_size=1, max_size=3))
    holes = st.sets(st.integers(0, NUM_PAGES - 1), max_size=4)
    return page_size, groups, [set(range(NUM_PAGES)) - draw(holes) for _ in groups]


def accepts(dependency: Dependency, held: set[int], num_pages: int, page_size: int) -> bool:
    length = num_pages * page_size
    needed = dependency.needed(length)
    return dependency.whole(length) == length and all(
        t // page_size in held for r in needed for t in range(r.start, r.stop)
    )


def find(
    page_size: int, groups: Sequence[Dependency], held: Sequence[set[int]]
) -> tuple[int, int | None]:
    def first_missing(group: int, pages: Range) -> int | None:
        return next((p for p in range(*pages) if p not in held[group]), None)

    def needed(group: int, length: int) -> Sequence[Range]:
        return page_ranges(groups[group].needed(length), page_size)

    return longest_hit(NUM_PAGES, page_size, groups, needed, first_missing)


@settings(max_examples=300, deadline=None)
@given(caches())
def test_the_hit_is_the_longest_that_every_group_accepts(
    cache: tuple[int, list[Dependency], list[set[int]]],
) -> None:
    page_size, groups, held = cache
    longest = max(
        n
        for n in range(NUM_PAGES + 1)
        if all(accepts(d, h, n, page_size) for d, h in zip(groups, held, strict=True))
    )
    length, cut_by = find(page_size, groups, held)
    assert length == longest
    if length == NUM_PAGES:
        assert cut_by is None
    else:
        assert cut_by is not None
        assert not accepts(groups[cut_by], held[cut_by], length + 1, page_size)


def test_a_full_group_cuts_at_its_first_hole() -> None:
    assert find(1, [Full()], [{0, 1, 3, 4}]) == (2, 0)


def test_a_window_cuts_only_where_it_looks() -> None:
    """A window of 4 reads three earlier tokens: the last ten pages are whole."""
    assert find(1, [Full(), SlidingWindow(4)], [set(range(12)), set(range(2, 12))]) == (12, None)


def test_a_hole_in_the_last_window_is_jumped_over_whole() -> None:
    """Page 8 is missing, so lengths 9, 10 and 11 are no hits either."""
    held = [set(range(12)), set(range(12)) - {9}]
    assert find(1, [Full(), SlidingWindow(4)], held) == (9, 1)


def test_groups_that_cut_in_turn_reach_a_length_that_both_accept() -> None:
    """The window cuts at 9, the full group at 7, and there the window misses page 6."""
    held = [set(range(7)), set(range(12)) - {6, 9}]
    assert find(1, [Full(), SlidingWindow(4)], held) == (6, 1)


def test_what_an_encoder_made_is_hit_as_a_whole_or_not_at_all() -> None:
    """Eight pages for the text, of which the window wants a page that is gone: back to the end of
    what the encoder made, and not into it."""
    groups = [EncoderTokens(4), DecoderTokens(4, SlidingWindow(3))]
    everything = set(range(12))
    assert find(1, groups, [everything, everything - {4}]) == (12, None)
    assert find(1, groups, [everything, set()]) == (4, 1)
    assert find(1, groups, [{0, 1, 2}, everything])[0] == 0


def test_nothing_held_is_a_hit_of_nothing() -> None:
    assert find(4, [Full()], [set()]) == (0, 0)


def test_a_chunk_boundary_needs_nothing() -> None:
    assert find(1, [ChunkedLocal(4)], [set()]) == (12, None)
