"""What each dependency still needs, in small numbers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from jenga_sglang.core.dependency import (
    ChunkedLocal,
    CrossAttention,
    DecoderTokens,
    Dependency,
    EncoderTokens,
    Full,
    LastState,
    SlidingWindow,
    TableTrim,
    check_legal,
)
from jenga_sglang.core.experimental import Switches
from jenga_sglang.core.ranges import Range, page_ranges, subtract

LEGAL = [
    Full(),
    SlidingWindow(1),
    SlidingWindow(2),
    SlidingWindow(7),
    SlidingWindow(1, sink_tokens=3),
    SlidingWindow(5, sink_tokens=4),
    SlidingWindow(6, sink_tokens=2),
    ChunkedLocal(1),
    ChunkedLocal(6),
    ChunkedLocal(16),
    LastState(),
    CrossAttention(),
    EncoderTokens(0),
    EncoderTokens(5),
    DecoderTokens(0),
    DecoderTokens(5),
    Switches(10, Full(), SlidingWindow(4)),
    Switches(0, Full(), ChunkedLocal(6)),
    Switches(20, SlidingWindow(9, sink_tokens=2), SlidingWindow(5, sink_tokens=1)),
    Switches(7, Full(), Switches(15, SlidingWindow(8), SlidingWindow(3))),
]


def needed(dependency: Dependency, length: int) -> list[tuple[int, int]]:
    return [(r.start, r.stop) for r in dependency.needed(length)]


def test_full_attention_needs_every_earlier_token() -> None:
    assert needed(Full(), 5) == [(0, 5)]


def test_a_window_counts_the_query_itself() -> None:
    """The token at position 100 reads itself and 63 earlier ones: 37 … 99."""
    assert needed(SlidingWindow(64), 100) == [(37, 100)]
    assert SlidingWindow(64).needed(100)[0].size == 63


def test_a_window_needs_everything_until_it_is_full() -> None:
    assert needed(SlidingWindow(64), 63) == [(0, 63)]
    assert needed(SlidingWindow(64), 64) == [(1, 64)]


def test_a_window_of_one_token_needs_no_history() -> None:
    assert needed(SlidingWindow(1), 9) == []


def test_sink_tokens_stay_needed_beside_the_window() -> None:
    assert needed(SlidingWindow(4, sink_tokens=2), 10) == [(0, 2), (7, 10)]


def test_a_window_that_still_touches_the_sink_is_one_range() -> None:
    assert needed(SlidingWindow(4, sink_tokens=2), 5) == [(0, 5)]
    assert needed(SlidingWindow(4, sink_tokens=2), 6) == [(0, 2), (3, 6)]


def test_a_history_inside_the_sink_is_needed_whole() -> None:
    assert needed(SlidingWindow(1, sink_tokens=4), 3) == [(0, 3)]


def test_a_chunk_needs_only_its_own_beginning() -> None:
    assert needed(ChunkedLocal(8), 7) == [(0, 7)]
    assert needed(ChunkedLocal(8), 11) == [(8, 11)]


def test_a_history_that_ends_on_a_chunk_boundary_needs_nothing() -> None:
    assert needed(ChunkedLocal(8), 16) == []


def test_a_recurrent_layer_needs_the_state_of_the_last_token() -> None:
    assert needed(LastState(), 9) == [(8, 9)]


def reads(dependency: Dependency, position: int) -> list[tuple[int, int]]:
    return [(r.start, r.stop) for r in dependency.visible(position)]


def test_a_query_reads_what_is_kept_for_it_and_itself() -> None:
    assert reads(Full(), 5) == [(0, 6)]
    assert reads(SlidingWindow(4), 10) == [(7, 11)]
    assert reads(SlidingWindow(1), 10) == [(10, 11)]
    assert reads(SlidingWindow(4, sink_tokens=2), 10) == [(0, 2), (7, 11)]
    assert reads(ChunkedLocal(8), 16) == [(16, 17)]


def test_text_reads_text_and_cross_attention_what_the_encoder_made() -> None:
    assert reads(CrossAttention().after_encoder(4), 9) == [(0, 4)]
    assert reads(CrossAttention().after_encoder(0), 9) == []
    assert reads(Full().after_encoder(4), 9) == [(4, 10)]
    assert reads(SlidingWindow(3).after_encoder(4), 5) == [(4, 6)]


def test_kernels_are_told_of_masks_that_they_have() -> None:
    """A window of 4 reads 3 tokens before the query; sinks no kernel knows."""
    assert Full().trim() == CrossAttention().trim() == (-1, 0)
    assert SlidingWindow(4).trim() == (3, 0)
    assert ChunkedLocal(8).trim() == (-1, 8)
    assert SlidingWindow(4, sink_tokens=2).trim() is None
    assert Switches(10, Full(), SlidingWindow(4)).trim() is None


def test_an_encoder_and_a_decoder_share_a_history_between_them() -> None:
    assert needed(EncoderTokens(4), 9) == [(0, 4)]
    assert needed(DecoderTokens(4), 9) == [(4, 9)]
    assert needed(EncoderTokens(4), 3) == [(0, 3)]
    assert needed(DecoderTokens(4), 3) == []


@pytest.mark.parametrize("dependency", LEGAL, ids=str)
def test_an_empty_history_needs_nothing(dependency: Dependency) -> None:
    assert needed(dependency, 0) == []


@pytest.mark.parametrize("dependency", LEGAL, ids=str)
def test_the_dependencies_keep_their_contract(dependency: Dependency) -> None:
    check_legal(dependency, range(60))
    check_legal(dependency, range(0, 60, 7))


@dataclass(frozen=True)
class Listed(Dependency):
    """Needs what a table says for each length."""

    table: tuple[tuple[Range, ...], ...]
    peak: int = 99
    read: tuple[Range, ...] = ()
    trimmed: TableTrim | None = None

    def needed(self, length: int) -> tuple[Range, ...]:
        return self.table[length]

    def visible(self, position: int) -> tuple[Range, ...]:
        return self.read

    def trim(self) -> TableTrim | None:
        return self.trimmed

    def peak_tokens(self, length: int) -> int:
        return self.peak

    def __str__(self) -> str:
        return "listed"


@pytest.mark.parametrize(
    ("dependency", "complaint"),
    [
        (Listed(((), (Range(0, 1),), (Range(1, 2),), (Range(0, 3),))), "needs token 0 at length 3"),
        (Listed(((), (Range(0, 2),))), "outside"),
        (Listed(((), (Range(0, 1),), (Range(0, 2),)), peak=1), "peak_tokens"),
        (Listed(((), (), ()), read=(Range(0, 1),)), "reads token 0 at 1, which it had let go"),
        (Listed(((), (Range(0, 1),)), trimmed=TableTrim(4)), "reads other tokens at 1 than"),
    ],
    ids=["takes a token back", "looks ahead", "outgrows its peak", "reads what is gone", "misread"],
)
def test_a_dependency_that_breaks_its_contract_is_refused(
    dependency: Listed, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_legal(dependency, range(len(dependency.table)))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SlidingWindow, (0,)),
        (SlidingWindow, (4, -1)),
        (ChunkedLocal, (0,)),
        (EncoderTokens, (-1,)),
        (DecoderTokens, (-1,)),
    ],
)
def test_sizes_that_make_no_sense_are_refused(
    kind: Callable[..., Dependency], arguments: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        kind(*arguments)


def test_a_window_that_never_slides_is_full_attention() -> None:
    assert SlidingWindow(100).effective(100) == Full()
    assert SlidingWindow(99).effective(100) == SlidingWindow(99)
    assert SlidingWindow(60, sink_tokens=40).effective(100) == Full()
    assert ChunkedLocal(100).effective(100) == Full()
    assert ChunkedLocal(99).effective(100) == ChunkedLocal(99)


def stores_every_token(dependency: Dependency) -> bool:
    """Whether the layers write a row for every token: a page at the front is held for all."""
    return isinstance(dependency, Full | SlidingWindow | ChunkedLocal)


def tokens_of(ranges: Iterable[Range]) -> set[int]:
    return {t for r in ranges for t in range(r.start, r.stop)}


@pytest.mark.parametrize("dependency", LEGAL, ids=str)
def test_peak_tokens_is_exactly_the_most_that_any_shorter_history_needs(
    dependency: Dependency,
) -> None:
    for length in range(60):
        most = max(len(tokens_of(dependency.needed(n))) for n in range(length + 1))
        assert dependency.peak_tokens(length) == most, length


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("dependency", [d for d in LEGAL if stores_every_token(d)], ids=str)
def test_peak_pages_is_never_less_than_a_running_request_holds(
    dependency: Dependency, page_size: int
) -> None:
    """A request that slides after every token keeps what its last page boundary needs, and the
    page that it writes."""
    for length in range(100):
        whole = length // page_size * page_size
        needs = tokens_of(dependency.needed(whole)) | set(range(whole, length))
        held = {t // page_size for t in needs}
        assert len(held) <= dependency.peak_pages(length, page_size), length


def test_page_ranges_cover_what_tokens_touch() -> None:
    assert page_ranges([Range(0, 1)], 4) == (Range(0, 1),)
    assert page_ranges([Range(3, 5)], 4) == (Range(0, 2),)
    assert page_ranges([Range(4, 8)], 4) == (Range(1, 2),)
    assert page_ranges([], 4) == ()


def test_token_ranges_that_meet_in_a_page_become_one_page_range() -> None:
    assert page_ranges([Range(0, 2), Range(3, 9)], 4) == (Range(0, 3),)
    assert page_ranges([Range(0, 2), Range(4, 9)], 4) == (Range(0, 3),)
    assert page_ranges([Range(0, 2), Range(8, 9)], 4) == (Range(0, 1), Range(2, 3))


def test_subtract_leaves_the_parts_outside() -> None:
    assert subtract([Range(0, 10)], [Range(2, 4), Range(6, 7)]) == [
        Range(0, 2),
        Range(4, 6),
        Range(7, 10),
    ]
    assert subtract([Range(0, 3), Range(5, 9)], [Range(2, 6)]) == [Range(0, 2), Range(6, 9)]
    assert subtract([Range(0, 3)], [Range(0, 3)]) == []
    assert subtract([Range(0, 3)], [Range(3, 9)]) == [Range(0, 3)]
    assert subtract([Range(2, 3)], []) == [Range(2, 3)]


def test_a_dependency_may_change_while_a_request_runs() -> None:
    """Everything until position 10, the last three tokens after it."""
    dependency = Switches(10, Full(), SlidingWindow(4))
    assert [needed(dependency, n) for n in (9, 10, 11)] == [[(0, 9)], [(0, 10)], [(8, 11)]]
    assert [dependency.peak_tokens(n) for n in (5, 10, 30)] == [5, 10, 10]
    assert dependency.effective(10) == Full()
    assert dependency.effective(11) == dependency


@pytest.mark.parametrize(
    ("position", "first", "then"),
    [
        (10, SlidingWindow(4), Full()),
        (10, SlidingWindow(4), SlidingWindow(6)),
        (12, ChunkedLocal(6), SlidingWindow(3)),
        (10, SlidingWindow(4), SlidingWindow(4, sink_tokens=1)),
    ],
)
def test_what_was_let_go_is_never_asked_for_again(
    position: int, first: Dependency, then: Dependency
) -> None:
    with pytest.raises(ValueError, match="is let go and then needed again"):
        Switches(position, first, then)


def test_behind_an_encoder_pages_are_counted_from_where_the_text_begins() -> None:
    """Pages of four tokens, of which the first begins with three of an encoder's."""
    window, everything = DecoderTokens(3, SlidingWindow(5)), DecoderTokens(3)
    assert [window.peak_pages(n, 4) for n in (0, 3, 4, 8, 12, 99)] == [0, 1, 1, 2, 3, 3]
    assert [everything.peak_pages(n, 4) for n in (0, 3, 4, 8, 12, 99)] == [0, 1, 1, 2, 3, 25]
    whole = DecoderTokens(8, SlidingWindow(5))
    assert [whole.peak_pages(n, 4) for n in (8, 9, 12, 13, 99)] == [0, 1, 1, 2, 2]
