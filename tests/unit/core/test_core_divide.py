"""What of held pages stays and what goes when a window slides, against sets of pages."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jenga_sglang.core.ranges import Range
from jenga_sglang.core.running import _divide

MOST = 12


def runs(pages: set[int]) -> list[Range]:
    """The fewest ranges that have exactly these pages."""
    found: list[Range] = []
    for page in sorted(pages):
        if found and found[-1].stop == page:
            found[-1] = Range(found[-1].start, page + 1)
        else:
            found.append(Range(page, page + 1))
    return found


def pages_of(ranges: list[Range]) -> set[int]:
    assert all(r.start < r.stop for r in ranges), "an empty range"
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges)), "out of order"
    return {page for r in ranges for page in range(r.start, r.stop)}


def check(held: set[int], needed: list[Range], front: int) -> None:
    kept = {page for r in needed for page in range(r.start, r.stop)}
    stays = {page for page in held if page in kept or page >= front}
    now, gone = _divide(runs(held), needed, front)
    assert (pages_of(now), pages_of(gone)) == (stays, held - stays)


@pytest.mark.parametrize("front", range(1, 8))
def test_a_window_that_ends_at_the_front(front: int) -> None:
    """All ways to hold eight pages, and all windows."""
    for start, chosen in itertools.product(range(front), range(1, 1 << 8)):
        held = {page for page in range(8) if chosen >> page & 1}
        check(held, [Range(start, front)], front)


@given(
    st.sets(st.integers(0, MOST - 1), min_size=1),
    st.sets(st.integers(0, MOST - 1)),
    st.integers(0, MOST),
)
def test_whatever_is_needed(held: set[int], needed: set[int], front: int) -> None:
    check(held, runs({page for page in needed if page < front}), front)
