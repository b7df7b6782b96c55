"""Page moves: the bytes named are moved, all others keep their values."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext import pages, reference


class Case:
    """A random pool with a ragged end, and lists of distinct ids, some of them -1."""

    def __init__(self, draw: st.DrawFn) -> None:
        torch.manual_seed(draw(st.integers(0, 10**6)))
        self.page_bytes = 16 * draw(st.sampled_from((1, 3, 16, 1024, 1030)))
        self.num_pages = draw(st.integers(1, 8))
        rest = draw(st.sampled_from((0, 1, 15)))
        size = self.page_bytes * self.num_pages + rest
        self.buffer = torch.randint(0, 256, (size,), dtype=torch.uint8)
        self.dtype = draw(st.sampled_from((torch.int32, torch.int64)))

    def ids(self, count: int, order: torch.Tensor | None = None) -> torch.Tensor:
        chosen = (torch.randperm(self.num_pages) if order is None else order)[:count]
        return torch.where(torch.rand(len(chosen)) < 0.2, -1, chosen).to(self.dtype)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 8))
def test_zeroed_pages_are_zero_and_others_untouched(data: st.DataObject, count: int) -> None:
    case = Case(data.draw)
    ids = case.ids(count)
    expected = case.buffer.clone()
    reference.zero_pages(expected, case.page_bytes, ids)
    pages.zero_pages(case.buffer, case.page_bytes, ids)
    assert torch.equal(case.buffer, expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_copied_pages_equal_their_sources(data: st.DataObject) -> None:
    case = Case(data.draw)
    order = torch.randperm(case.num_pages)
    half = case.num_pages // 2
    source, target = case.ids(half, order[:half]), case.ids(half, order[half:])
    expected = case.buffer.clone()
    reference.copy_pages(expected, case.page_bytes, source, target)
    pages.copy_pages(case.buffer, case.page_bytes, source, target)
    assert torch.equal(case.buffer, expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 8))
def test_gathered_rows_are_the_pages_and_scatter_brings_them_back(
    data: st.DataObject, count: int
) -> None:
    case = Case(data.draw)
    before, ids = case.buffer.clone(), case.ids(count)
    rows = torch.full((len(ids), case.page_bytes), 7, dtype=torch.uint8)
    pages.gather_pages(case.buffer, case.page_bytes, ids, rows)
    assert torch.equal(case.buffer, before)
    for row, page in zip(rows, ids.tolist(), strict=True):
        start = page * case.page_bytes
        expected = before[start : start + case.page_bytes] if page >= 0 else 7
        assert bool((row == expected).all())
    reference.zero_pages(case.buffer, case.page_bytes, ids)
    pages.scatter_pages(rows, case.buffer, case.page_bytes, ids)
    assert torch.equal(case.buffer, before)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_zeroed_spans_may_have_any_sizes(data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, 3000), min_size=2, max_size=8, unique=True))
    cuts = sorted(cuts)[: len(cuts) // 2 * 2]
    buffer = torch.randint(1, 256, (3000 * 16,), dtype=torch.uint8)
    spans = list(zip(cuts[::2], cuts[1::2], strict=True))
    expected = buffer.clone()
    for start, end in spans:
        expected[start * 16 : end * 16] = 0
    starts = torch.tensor([start * 4 for start, _ in spans] + [0])
    sizes = torch.tensor([(end - start) * 4 for start, end in spans] + [0])
    pages.zero_spans(buffer, starts, sizes, max_bytes=3000 * 16)
    assert torch.equal(buffer, expected)


def test_pages_past_4_gib_are_moved(far_pool: torch.Tensor) -> None:
    pool, page, last = far_pool, 1 << 20, (24 << 10) - 1
    pool[5 * page : 6 * page] = torch.randint(1, 256, (page,), dtype=torch.uint8)
    pages.copy_pages(pool, page, torch.tensor([5]), torch.tensor([last]))
    assert torch.equal(pool[last * page :], pool[5 * page : 6 * page])
    pages.zero_pages(pool, page, torch.tensor([last], dtype=torch.int32))
    assert not pool[last * page :].any()


def test_wrong_arguments_are_refused() -> None:
    buffer, ids = torch.zeros(256, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="in multiples of 16"):
        pages.zero_pages(buffer, 24, ids)
    with pytest.raises(ValueError, match="expected contiguous 1-D uint8"):
        pages.zero_pages(buffer.view(torch.int32), 16, ids)
    with pytest.raises(ValueError, match="ids: expected contiguous 1-D int32 or int64"):
        pages.zero_pages(buffer, 16, ids.float())
    with pytest.raises(ValueError, match=r"target_ids: expected \(1,\), got \(0,\)"):
        pages.copy_pages(buffer, 16, ids, ids[:0])
    with pytest.raises(ValueError, match="out: expected contiguous uint8"):
        pages.gather_pages(buffer, 16, ids, torch.zeros((1, 17), dtype=torch.uint8))
    with pytest.raises(ValueError, match="starts: expected int64"):
        pages.zero_spans(buffer, ids.int(), ids, 16)
