"""The page-table kernel against loops over requests and tokens."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashinfer_ext import GroupLayout, reference
from flashinfer_ext.table_spec import BatchInputs, TableSpec, index_multiplier
from flashinfer_ext.tables import BLOCK_ENTRIES, BLOCK_REQUESTS, PROGRAMS, TableBuilder
from flashinfer_ext.trim import Trim, host_counts, max_entries

NUM_VIRTUAL = 40
NUM_COLUMNS = 24
NUM_ROWS = 6


def spec_of(draw: st.DrawFn, tokens: int, max_kv: int) -> TableSpec:
    unit = draw(st.sampled_from((tokens, tokens, 1)))
    chunk = draw(st.sampled_from((0, 0, tokens, 3 * tokens)))
    trim = Trim(unit, draw(st.sampled_from((-1, 0, 2, 5, 11))), chunk)
    return TableSpec(
        trim,
        max_entries(trim, max_kv, max_kv),
        page_mul=draw(st.sampled_from((1, 6, 40))),
        index_add=draw(st.sampled_from((0, 3))),
        write_mul=draw(st.sampled_from((tokens, 12 * tokens))),
        num_stripes=draw(st.integers(1, 3)),
        batch_row=draw(st.integers(0, 1)),
        loc_row=draw(st.integers(0, 1)),
        csr=draw(st.booleans()),
        dense=draw(st.booleans()),
    )


class Case:
    """One random build: groups, a batch of two rows, virtual rows and page tables."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.tokens = draw(st.sampled_from((1, 2, 4, 5, 16)))
        max_kv = self.tokens * 16
        self.specs = tuple(
            spec_of(draw, self.tokens, max_kv) for _ in range(draw(st.integers(1, 3)))
        )
        self.requests = draw(st.integers(0, 5))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

        def integers(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

        kv_lens = integers(0, max_kv + 1, 2, self.requests)
        q_lens = (torch.rand(kv_lens.shape, generator=generator) ** 3 * kv_lens).int()
        first_pages = integers(0, NUM_COLUMNS - 16 + 1, 2, self.requests)
        req_rows = integers(0, NUM_ROWS, 2, self.requests)
        self.batch = BatchInputs(req_rows, kv_lens, q_lens, first_pages)
        self.rows = integers(-1, NUM_VIRTUAL, NUM_ROWS, NUM_COLUMNS)
        self.num_tables = sum(spec.num_stripes for spec in self.specs)
        self.page_tables = integers(-1, 50, self.num_tables, NUM_VIRTUAL)
        self.new_tokens = draw(st.sampled_from((0, 1, 7, 300)))
        self.locs = integers(-1, NUM_VIRTUAL * self.tokens, 2, self.new_tokens).long()
        self.locs = self.locs.clamp(min=-1)

    def builder(self) -> TableBuilder:
        return TableBuilder(self.specs, self.tokens, max(self.requests, 1), 512, "cpu")

    def token_rows(self) -> torch.Tensor:
        """The same rows as SGLang keeps them: one virtual token per token."""
        offsets = torch.arange(self.tokens, dtype=torch.int32)
        tokens = self.rows[..., None] * self.tokens + offsets
        return torch.where(self.rows[..., None] < 0, -1, tokens).flatten(1).int()


def assert_tables(case: Case, builder: TableBuilder) -> None:
    first_table = 0
    for group, spec in enumerate(case.specs):
        built = builder.tables(group, case.requests, case.new_tokens)
        kv_lens, q_lens = (
            tensor[spec.batch_row] for tensor in (case.batch.kv_lens, case.batch.q_lens)
        )
        counts = host_counts(spec.trim, kv_lens, q_lens)
        assert torch.equal(built.indptr, counts.indptr_cpu)
        assert torch.equal(built.kv_lens, counts.kv_lens_cpu)
        assert torch.equal(built.last_page_len, counts.last_page_len_cpu)
        for stripe in range(spec.num_stripes):
            page_table = case.page_tables[first_table + stripe]
            args = (case.tokens, case.batch, case.rows, page_table)
            expected = reference.table_entries(spec, *args)
            if spec.csr:
                flat = [index for entries in expected for index in entries]
                assert built.indices[stripe][: len(flat)].tolist() == flat
            if spec.dense:
                for row, entries in zip(built.block_tables[stripe], expected, strict=True):
                    assert row[: len(entries)].tolist() == entries
            slots = reference.write_slots(spec, case.tokens, page_table, case.locs[spec.loc_row])
            assert built.slots[stripe].tolist() == slots
        first_table += spec.num_stripes


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_all_groups_and_stripes_equal_brute_force(data: st.DataObject) -> None:
    case = Case(data.draw)
    builder = case.builder()
    locs = case.locs if case.new_tokens else None
    builder.build(case.batch, case.rows, case.page_tables, locs)
    assert_tables(case, builder)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_of_virtual_tokens_give_the_same_tables(data: st.DataObject) -> None:
    case = Case(data.draw)
    builder = case.builder()
    builder.build(case.batch, case.token_rows(), case.page_tables, case.locs, rows_hold_tokens=True)
    assert_tables(case, builder)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_second_step_leaves_nothing_of_the_first(data: st.DataObject) -> None:
    first, second = Case(data.draw), Case(data.draw)
    second.specs, second.tokens = first.specs, first.tokens
    second.num_tables, second.page_tables = first.num_tables, first.page_tables
    limit = second.tokens * 16
    lens = second.batch.kv_lens.clamp(max=limit)
    second.batch = BatchInputs(
        second.batch.req_rows, lens, second.batch.q_lens.minimum(lens), second.batch.first_pages
    )
    second.locs = second.locs.clamp(max=NUM_VIRTUAL * second.tokens - 1)
    size = max(first.requests, second.requests, 1)
    builder = TableBuilder(first.specs, first.tokens, size, 512, "cpu")
    for case in (first, second):
        builder.build(case.batch, case.rows, case.page_tables, case.locs)
    assert_tables(second, builder)


def single(kv_len: int, q_len: int = 1) -> BatchInputs:
    def row(value: int) -> torch.Tensor:
        return torch.tensor([[value]], dtype=torch.int32)

    return BatchInputs(row(0), row(kv_len), row(q_len), row(0))


def test_entries_past_the_end_are_the_null_page() -> None:
    builder = TableBuilder((TableSpec(Trim(4), 2 * BLOCK_ENTRIES),), 4, 1, 1, "cpu")
    builder.dense.fill_(77)
    rows = torch.arange(2 * BLOCK_ENTRIES, dtype=torch.int32)[None]
    builder.build(single(9), rows, rows + 5)
    row = builder.tables(0, 1).block_tables[0][0]
    assert row[:3].tolist() == [5, 6, 7]
    assert not row[3:BLOCK_ENTRIES].any()


@pytest.mark.parametrize("room_for_requests", [1, PROGRAMS // 2, PROGRAMS])
def test_a_request_of_many_blocks_is_written_whole(room_for_requests: int) -> None:
    """By as many programs as it has blocks, by fewer, and by one."""
    pages = 2 * BLOCK_ENTRIES + 3
    spec = TableSpec(Trim(2), pages, dense=False, csr_room=pages)
    builder = TableBuilder((spec,), 2, room_for_requests, 1, "cpu")
    rows = torch.arange(pages, dtype=torch.int32)[None].flip(1).contiguous()
    builder.build(single(2 * pages), rows, rows + 1)
    expected = (rows + 1)[0][rows[0].long()].tolist()
    assert builder.tables(0, 1).indices[0].tolist() == expected


def test_more_requests_than_a_block_of_them_are_counted_one_after_the_other() -> None:
    requests = BLOCK_REQUESTS + 3
    lens = 1 + torch.arange(requests, dtype=torch.int32) % 7
    builder = TableBuilder((TableSpec(Trim(2), 4),), 2, requests, 1, "cpu")
    zeros = torch.zeros_like(lens)
    batch = BatchInputs(zeros[None], lens[None], zeros[None], zeros[None])
    rows = torch.arange(4, dtype=torch.int32)[None]
    builder.build(batch, rows, rows + 1)
    counts = host_counts(Trim(2), lens, zeros)
    built = builder.tables(0, requests)
    assert torch.equal(built.indptr, counts.indptr_cpu)
    first, end = counts.indptr_cpu[-2:].tolist()
    assert built.indices[0][first:end].tolist() == [1, 2, 3, 4][: end - first]


def test_stripes_have_room_for_a_batch_and_not_for_its_longest_request_each_time() -> None:
    spec = TableSpec(Trim(4), 1000, num_stripes=2, dense=False, csr_room=7)
    builder = TableBuilder((spec,), 4, 50, 1, "cpu")
    assert builder.indices.numel() == 2 * 7 and not builder.dense.numel()
    rows = torch.arange(3, dtype=torch.int32)[None]
    builder.build(single(9), rows, torch.cat([rows + 5, rows + 8]))
    first, second = builder.tables(0, 1).indices
    assert (first[:3].tolist(), second[:3].tolist()) == ([5, 6, 7], [8, 9, 10])


def test_views_of_a_size_are_made_once_and_not_kept_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flashinfer_ext.tables.MOST_VIEWS", 3)
    builder = TableBuilder((TableSpec(Trim(4), 4), TableSpec(Trim(4), 2)), 4, 8, 8, "cpu")
    assert builder.tables(0, 2, 2) is builder.tables(0, 2, 2)
    sizes = [(1, 2, 2), (0, 3, 2), (0, 2, 3), (0, 8, 8)]
    for group, requests, tokens in sizes:
        views = builder.tables(group, requests, tokens)
        assert views.kv_lens.data_ptr() == builder.kv_lens[group].data_ptr()
        assert views.block_tables[0].shape == (requests, builder.specs[group].max_entries)
        assert views.slots[0].shape == (tokens,)
    assert len(builder._views) <= 3


@pytest.mark.parametrize("rows_hold_tokens", [False, True])
def test_what_no_page_table_has_a_column_for_is_missing(rows_hold_tokens: bool) -> None:
    """A row that nobody has written holds anything after memory was given back and taken again."""
    builder = TableBuilder((TableSpec(Trim(4), 4, write_mul=4),), 4, 1, 2, "cpu")
    larger = torch.tensor([[5, 6, 77, 78]], dtype=torch.int32)
    row = torch.tensor([[1, 2, 3]], dtype=torch.int32)
    if rows_hold_tokens:
        row = (row * 4).repeat_interleave(4, dim=1)
    locs = torch.tensor([[4 * 1 + 3, 4 * 2]])
    builder.build(single(12), row, larger[:, :2], locs, rows_hold_tokens)
    built = builder.tables(0, 1, 2)
    assert built.indices[0][:3].tolist() == [6, 0, 0]
    assert built.block_tables[0][0, :3].tolist() == [6, 0, 0]
    assert built.slots[0].tolist() == [6 * 4 + 3, -1]


@pytest.mark.parametrize("view", ["page", "row", "block"])
def test_entries_index_the_view_they_were_made_for(view: str) -> None:
    from flashinfer_ext import block_views, page_views, row_views

    layout = GroupLayout(3, 4, 1, 8, 8, torch.float32, 3 * 2 * 4 * 8 * 4)
    buffer = torch.randint(0, 100, (layout.small_page_bytes * 9,), dtype=torch.uint8)
    buffer.view(torch.float32).copy_(torch.randn(buffer.numel() // 4))
    unit = 1 if view == "row" else 4
    spec = TableSpec(Trim(unit), 16, page_mul=index_multiplier(layout, view), write_mul=4)
    builder = TableBuilder((spec,), 4, 1, 1, "cpu")
    rows = torch.tensor([[2, 0, 1, 3]], dtype=torch.int32)
    page_table = torch.tensor([[8, 3, 5, 1]], dtype=torch.int32)
    builder.build(single(11), rows, page_table)
    tables = builder.tables(0, 1)
    used = tables.indices[0][: int(tables.indptr[1])].long()
    make = {"page": page_views, "row": row_views, "block": block_views}[view]
    pages = torch.tensor([5, 8, 3])
    for got, expected in zip(make(buffer, layout, 1), page_views(buffer, layout, 1), strict=True):
        tokens = got[used].reshape(-1, 1, 8)[:11]
        assert torch.equal(tokens, expected[pages].reshape(-1, 1, 8)[:11])


def test_wrong_inputs_are_refused() -> None:
    builder = TableBuilder((TableSpec(Trim(4), 8, num_stripes=2),), 4, 1, 4, "cpu")
    rows = torch.zeros((1, 8), dtype=torch.int32)
    with pytest.raises(ValueError, match="page_tables: expected 2 or more rows, got 1"):
        builder.build(single(3), rows, rows)
    tables = torch.zeros((2, 8), dtype=torch.int32)
    with pytest.raises(ValueError, match="virtual_rows: expected int32"):
        builder.build(single(3), rows.long(), tables)
    with pytest.raises(ValueError, match="out_locs: expected"):
        builder.build(single(3), rows, tables, torch.zeros((1, 5), dtype=torch.int64))
    two = BatchInputs(*(torch.zeros((1, 2), dtype=torch.int32) for _ in range(4)))
    with pytest.raises(ValueError, match="kv_lens: expected"):
        builder.build(two, rows, tables)
    with pytest.raises(ValueError, match="entry_tokens: expected 1 or the page size 4, got 2"):
        TableBuilder((TableSpec(Trim(2), 8),), 4, 1, 4, "cpu")
