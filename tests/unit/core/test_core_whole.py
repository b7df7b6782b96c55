"""Where a step may end that must not end inside an image."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jenga_sglang.core.ranges import Range
from jenga_sglang.core.whole import longest_of, longest_step, shortest_step

PAGE = 4


@pytest.mark.parametrize(
    ("start", "most", "expected"),
    [
        (0, 16, 8),  # before the image of tokens 10 to 22, on a page
        (0, 24, 24),  # behind it
        (0, 23, 8),  # 23 rounds down to 20, inside
        (8, 8, 0),  # nowhere
        (8, 16, 16),
        (24, 8, 8),
        (0, 60, 60),  # the prompt has 40
        (24, 17, 17),  # to the prompt's end, and not to a page before it
    ],
)
def test_by_hand(start: int, most: int, expected: int) -> None:
    assert longest_step(start, most, 40, [Range(10, 22)], PAGE) == expected


def test_an_image_that_is_longer_than_a_step() -> None:
    image = Range(10, 22)
    assert shortest_step(8, 40, [image], PAGE) == 24 - 8
    # The next image begins on the page that the first ends on, and the prompt ends before a page.
    assert shortest_step(8, 30, [image, Range(23, 29)], PAGE) == 30 - 8
    assert longest_of([image], PAGE) == 16
    assert longest_of([image, Range(23, 29)], PAGE) == 32 - 8
    assert longest_of([], PAGE) == 0


def test_a_prompt_without_images_is_cut_anywhere() -> None:
    assert longest_step(3, 6, 40, [], PAGE) == 6


@settings(deadline=None)
@given(st.data())
def test_a_prompt_is_computed_to_its_end_and_no_step_ends_inside(data: st.DataObject) -> None:
    whole, at = [], 0
    for _ in range(data.draw(st.integers(1, 4))):
        start = at + data.draw(st.integers(0, 9))
        at = start + data.draw(st.integers(1, 30))
        whole.append(Range(start, at))
    length = at + data.draw(st.integers(1, 9))
    most = PAGE * data.draw(st.integers(1, 6))
    position = PAGE * data.draw(st.integers(0, (length - 1) // PAGE))
    while position < length:
        step = longest_step(position, most, length, whole, PAGE)
        assert step <= most
        shortest = shortest_step(position, length, whole, PAGE)
        assert shortest > 0
        if step:
            assert step >= shortest
        else:
            assert most < shortest <= longest_of(whole, PAGE)
        position += step or shortest
        assert position >= length or position % PAGE == 0
        assert not any(r.start < position < r.stop for r in whole)
