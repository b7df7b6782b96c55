"""Host counts against brute force over the mask, and against FlashInfer's own arithmetic."""

import warnings
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext.reference import Mask
from flashinfer_ext.trim import Trim, host_counts, max_entries, split_at_chunks


@st.composite
def trims(draw: st.DrawFn) -> Trim:
    unit = draw(st.sampled_from((1, 2, 4, 5, 16)))
    chunk = draw(st.sampled_from((0, 0, 1, 2, 3))) * unit
    return Trim(unit, draw(st.sampled_from((-1, 0, 1, 3, 7, 20))), chunk)


@st.composite
def lengths(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """kv_lens and q_lens of a batch, with 1 <= q_len <= kv_len."""
    kv = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    q = [draw(st.integers(1, length)) for length in kv]
    return torch.tensor(kv, dtype=torch.int32), torch.tensor(q, dtype=torch.int32)


def needed_tokens(trim: Trim, kv_len: int, q_len: int) -> list[int]:
    """Tokens that some query sees."""
    positions = torch.arange(kv_len)
    mask = Mask(True, trim.window_left, trim.chunk_tokens)
    seen = mask.visible(positions[kv_len - q_len :], positions).any(dim=0)
    return torch.nonzero(seen).flatten().tolist()


@settings(max_examples=150, deadline=None)
@given(trim=trims(), batch=lengths())
def test_counts_cover_what_is_needed_and_nothing_before_its_first_entry(
    trim: Trim, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    counts = host_counts(trim, *batch)
    unit = trim.entry_tokens
    for request, (kv_len, q_len) in enumerate(zip(*map(torch.Tensor.tolist, batch), strict=True)):
        first = needed_tokens(trim, kv_len, q_len)[0] // unit
        entries = list(range(first, -(-kv_len // unit)))
        before, after = counts.indptr_cpu[request : request + 2].tolist()
        assert counts.first_entries_cpu[request] == first
        assert after - before == len(entries)
        assert counts.kv_lens_cpu[request] == kv_len - first * unit


@pytest.fixture(scope="module")
def flashinfer_seq_lens() -> Callable[..., torch.Tensor]:
    with warnings.catch_warnings(action="ignore"):
        from flashinfer.page import get_seq_lens
    return get_seq_lens


@settings(max_examples=100, deadline=None)
@given(trim=trims(), batch=lengths())
def test_flashinfer_recovers_the_lengths_from_the_arrays(
    flashinfer_seq_lens: Callable[..., torch.Tensor],
    trim: Trim,
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    counts = host_counts(trim, *batch)
    lens = flashinfer_seq_lens(counts.indptr_cpu, counts.last_page_len_cpu, trim.entry_tokens)
    assert lens.tolist() == counts.kv_lens_cpu.tolist()
    assert all(1 <= n <= trim.entry_tokens for n in counts.last_page_len_cpu.tolist())
    arrays = (counts.indptr_cpu, counts.kv_lens_cpu, counts.last_page_len_cpu)
    assert all(array.dtype == torch.int32 for array in arrays)


@settings(max_examples=100, deadline=None)
@given(trim=trims(), batch=lengths())
def test_no_request_has_more_entries_than_the_bound(
    trim: Trim, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    bound = max_entries(trim, int(batch[0].max()), int(batch[1].max()))
    assert int(host_counts(trim, *batch).indptr_cpu.diff().max()) <= bound


@pytest.mark.parametrize("trim", [Trim(4, window_left=9), Trim(4, chunk_tokens=8), Trim(1, 3)])
def test_the_bound_is_reached(trim: Trim) -> None:
    kv = torch.arange(1, 40, dtype=torch.int32)
    counts = host_counts(trim, kv, torch.ones_like(kv))
    assert int(counts.indptr_cpu.diff().max()) == max_entries(trim, 39, 1)


def test_a_padding_request_without_tokens_has_no_entry() -> None:
    counts = host_counts(Trim(4, 5), torch.tensor([0, 9]), torch.tensor([0, 1]))
    assert counts.indptr_cpu.tolist() == [0, 0, 3]
    assert counts.kv_lens_cpu.tolist() == [0, 9]
    assert counts.num_entries == 3


@settings(max_examples=100, deadline=None)
@given(batch=lengths(), chunk=st.integers(1, 12))
def test_split_queries_see_what_the_chunk_mask_shows(
    batch: tuple[torch.Tensor, torch.Tensor], chunk: int
) -> None:
    owners, kv_lens, q_lens = split_at_chunks(*batch, chunk)
    seen: dict[tuple[int, int], list[int]] = {}
    for owner, kv_len, q_len in zip(
        owners.tolist(), kv_lens.tolist(), q_lens.tolist(), strict=True
    ):
        start = (kv_len - q_len) // chunk * chunk
        for query in range(kv_len - q_len, kv_len):
            seen[owner, query] = list(range(start, query + 1))
    for owner, (kv_len, q_len) in enumerate(zip(*map(torch.Tensor.tolist, batch), strict=True)):
        visible = Mask(chunk_tokens=chunk).visible(
            torch.arange(kv_len - q_len, kv_len), torch.arange(kv_len)
        )
        for row, query in enumerate(range(kv_len - q_len, kv_len)):
            assert seen.pop((owner, query)) == torch.nonzero(visible[row]).flatten().tolist()
    assert not seen


def test_a_chunk_inside_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of entry_tokens 4, got 6"):
        Trim(4, chunk_tokens=6)


def test_device_or_uneven_lengths_are_refused() -> None:
    lens = torch.ones(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="kv_lens_cpu: expected a 1-D host tensor"):
        host_counts(Trim(4), lens.to("meta"), lens)
    with pytest.raises(ValueError, match=r"q_lens_cpu: expected shape \(2,\), got \(1,\)"):
        host_counts(Trim(4), lens, lens[:1])
