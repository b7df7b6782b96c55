"""The tables of one forward pass for every layer group, in one launch.

What kernels want of a request is a trim (`flashinfer_ext.trim`) of its history. A group's queries
are the batch's, except where a kernel has no mask for the group's dependency: chunked attention
cuts a request's new tokens at chunk borders, and every part becomes a request of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import le

import torch
from torch.nn.functional import pad

from flashinfer_ext.staging import PinnedRing
from flashinfer_ext.table_spec import BatchInputs, GroupTables, TableSpec
from flashinfer_ext.tables import TableBuilder
from flashinfer_ext.trim import HostCounts, Trim, host_counts, max_entries, split_at_chunks
from jenga_sglang.adapter.attention.page_tables import STEPS_IN_FLIGHT, PageTableCopy
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.dependency import Dependency

INT_BYTES = 4


def trim_of(dependency: Dependency, entry_tokens: int) -> Trim:
    """The dependency as table parameters.

    Raises ``ValueError`` for one that no kernel has a mask for; the message says which.
    """
    trim = dependency.trim()
    if trim is None:
        raise ValueError(f"its kernels know full, windowed and chunked attention, not {dependency}")
    return Trim(entry_tokens, **trim._asdict())


@dataclass(frozen=True)
class Rows:
    """The requests of a step, or parts of them. All (B,) int32 on the host.

    ``kv_lens`` tokens are in the row's table, untrimmed, the last ``q_lens`` of them new;
    ``queries`` rows of the batch's queries are the row's, one row's after the other's; ``owners``
    is the position in the batch of the request that it is a part of. ``of_encoder`` is for what an
    encoder made in front of the text, none of it the queries' own.
    """

    kv_lens: torch.Tensor
    q_lens: torch.Tensor
    queries: torch.Tensor
    owners: torch.Tensor
    of_encoder: bool = False

    @classmethod
    def whole(cls, kv_lens: torch.Tensor, q_lens: torch.Tensor) -> Rows:
        """One row per request, the new tokens in its table."""
        owners = torch.arange(len(kv_lens), dtype=torch.int32)
        return cls(kv_lens, q_lens, q_lens, owners)

    @classmethod
    def parts(cls, kv_lens: torch.Tensor, q_lens: torch.Tensor, chunk_tokens: int) -> Rows:
        """Rows whose queries lie in one chunk each; the order of queries stays."""
        owners, part_kv_lens, part_q_lens = split_at_chunks(kv_lens, q_lens, chunk_tokens)
        return cls(part_kv_lens, part_q_lens, part_q_lens, owners)

    def filled_up(self, count: int) -> Rows:
        """``count`` rows, those behind the rows there are without tokens and queries."""
        lacking = (0, count - len(self))
        return replace(
            self,
            kv_lens=pad(self.kv_lens, lacking),
            q_lens=pad(self.q_lens, lacking),
            queries=pad(self.queries, lacking),
            owners=pad(self.owners, lacking),
        )

    @classmethod
    def encoder(cls, encoder_lens: torch.Tensor, q_lens: torch.Tensor) -> Rows:
        """One row per request, of what an encoder made of its images; a request without any reads
        one token of the null page, whose value is zero."""
        return replace(cls.whole(encoder_lens.clamp(min=1), q_lens), of_encoder=True)

    def before(self) -> Rows:
        """The same rows without their new tokens in the table."""
        return replace(self, kv_lens=self.kv_lens - self.q_lens, q_lens=self.q_lens * 0)

    def __len__(self) -> int:
        return len(self.kv_lens)


@dataclass(frozen=True)
class EncoderInputs:
    """What encoders made in front of a batch's texts: ``pages`` (requests,) int32 on the host that
    it fills, and the virtual tokens of what is new, (tokens,) on the device."""

    pages: torch.Tensor
    locs: torch.Tensor | None


@dataclass(frozen=True)
class GroupStep:
    """What one group reads and writes in a step: its rows, and their tables as the host counts
    them and as the device has them."""

    rows: Rows
    counts: HostCounts
    tables: GroupTables


@dataclass(frozen=True)
class Captured:
    """The largest batch of a CUDA graph: ``requests``, each of ``queries`` new tokens, which make
    up to ``rows`` rows of a group."""

    requests: int
    queries: int
    rows: int


class StepTables:
    """Builds the tables of one step after the other into buffers of its own.

    ``specs`` has one entry per group of ``copy``; their ``max_entries`` is filled in here. With
    ``most`` the buffers stay where they are for batches up to that size and histories up to the
    width of ``req_to_token``, as a CUDA graph needs it; without, they grow with the batches.
    """

    def __init__(
        self,
        copy: PageTableCopy,
        req_to_token: torch.Tensor,
        specs: Sequence[TableSpec],
        page_size: int,
        index_dtype: torch.dtype = torch.int32,
        most: Captured | None = None,
    ) -> None:
        self._copy = copy
        self._req_to_token = req_to_token
        self._specs = tuple(specs)
        self._page_size = page_size
        self._index_dtype = index_dtype
        self._fixed = most is not None
        self._builder: TableBuilder | None = None
        self._num_rows = 1 + max(spec.batch_row for spec in specs)
        if most is not None:
            longest = req_to_token.shape[1]
            entries = [max_entries(spec.trim, longest, most.queries) for spec in specs]
            self._make(most.rows, most.requests * most.queries, entries)
        else:
            self._make(1, 1, [1] * len(specs), [1] * len(specs))

    @property
    def builder(self) -> TableBuilder:
        return present(self._builder, "the tables have not been made yet")

    @property
    def num_bytes(self) -> int:
        """What the tables take on the device."""
        builder = self.builder
        return sum(t.numel() * t.itemsize for t in (builder.indices, builder.dense, builder.slots))

    def build(
        self,
        rows: Sequence[Rows],
        req_pool_indices: torch.Tensor,
        locs: torch.Tensor | None,
        num_tokens: int,
        encoder: EncoderInputs | None = None,
    ) -> list[GroupStep]:
        """Bring the page tables up to date and build the step's tables, all in stream order.

        rows: one per `TableSpec.batch_row`. req_pool_indices: (requests,) int, device. locs: at
        most ``num_tokens`` virtual tokens to write, int, device; those that are missing at the end
        are padding, whose writes are skipped. encoder: for a model with cross-attention.
        """
        counts = [
            host_counts(spec.trim, rows[spec.batch_row].kv_lens, rows[spec.batch_row].q_lens)
            for spec in self._specs
        ]
        width = max(map(len, rows))
        all_locs = [locs]
        if encoder is not None:
            all_locs.append(encoder.locs)
            num_tokens = max(num_tokens, 0 if encoder.locs is None else len(encoder.locs))
        self._fit(width, num_tokens, counts)
        self._copy.follow()
        self.builder.build(
            self._inputs(rows, width, req_pool_indices, encoder),
            self._req_to_token,
            self._copy.entries,
            self._locations(all_locs, num_tokens),
            rows_hold_tokens=True,
        )
        return [
            GroupStep(
                rows[spec.batch_row],
                count,
                self.builder.tables(g, len(rows[spec.batch_row]), num_tokens),
            )
            for g, (spec, count) in enumerate(zip(self._specs, counts, strict=True))
        ]

    def _fit(self, batch: int, tokens: int, counts: Sequence[HostCounts]) -> None:
        """Make larger buffers where these are too small: for the most entries that a request of
        any step so far had, and that any step had in all."""
        builder = self.builder
        longest = [count.most_entries for count in counts]
        totals = [count.num_entries for count in counts]
        room = [spec.max_entries for spec in builder.specs]
        rooms = [spec.csr_room or spec.max_entries * builder.max_batch for spec in builder.specs]
        fits = batch <= builder.max_batch and tokens <= builder.max_tokens
        if fits and all(map(le, longest, room)) and all(map(le, totals, rooms)):
            return
        if self._fixed:
            raise ValueError(
                f"a step in a CUDA graph: expected at most {builder.max_batch} requests and "
                f"entries {room}, got {batch} and {longest}"
            )
        self._make(
            _grown(batch, builder.max_batch),
            _grown(tokens, builder.max_tokens),
            list(map(_grown, longest, room)),
            list(map(_grown, totals, rooms)),
        )

    def _make(
        self,
        batch: int,
        tokens: int,
        entries: Sequence[int],
        csr_rooms: Sequence[int] | None = None,
    ) -> None:
        device = self._copy.entries.device
        specs = [
            replace(spec, max_entries=n, csr_room=room)
            for spec, n, room in zip(
                self._specs, entries, csr_rooms or [0] * len(entries), strict=True
            )
        ]
        # The device need not hold both at once.
        self._builder = None
        self._builder = TableBuilder(
            tuple(specs), self._page_size, batch, tokens, device, self._index_dtype
        )
        numbers = self._num_rows * batch
        num_locs = 1 + max(spec.loc_row for spec in self._specs)
        self._locs = torch.zeros((num_locs, tokens), dtype=torch.int64, device=device)
        self._ring = PinnedRing(4 * numbers * INT_BYTES, STEPS_IN_FLIGHT + 1, device)

    def _inputs(
        self,
        rows: Sequence[Rows],
        width: int,
        req_pool_indices: torch.Tensor,
        encoder: EncoderInputs | None,
    ) -> BatchInputs:
        """The rows on the device; what a shorter row lacks has no tokens."""
        shape = (4, self._num_rows, width)
        numbers = 4 * self._num_rows * width
        with self._ring.buffer() as pinned:
            staged = pinned[: numbers * INT_BYTES].view(torch.int32).view(shape)
            staged.zero_()
            for i, row in enumerate(rows):
                staged[0, i, : len(row)] = row.kv_lens
                staged[1, i, : len(row)] = row.q_lens
                staged[2, i, : len(row)] = row.owners
                if encoder is not None and not row.of_encoder:
                    staged[3, i, : len(row)] = encoder.pages[row.owners]
            on_device = staged.to(self._locs.device, non_blocking=True)
        kv_lens, q_lens, owners, first_pages = on_device.unbind()
        req_rows = req_pool_indices.index_select(0, owners.flatten()).to(torch.int32)
        return BatchInputs(req_rows.view(shape[1:]), kv_lens, q_lens, first_pages)

    def _locations(self, all_locs: Sequence[torch.Tensor | None], num_tokens: int) -> torch.Tensor:
        """(rows, num_tokens) virtual tokens, one row per `TableSpec.loc_row`; 0 names no page, so
        what is padding is not written."""
        for row, locs in zip(self._locs, all_locs, strict=True):
            given = 0 if locs is None else len(locs)
            if locs is not None:
                row[:given].copy_(locs)
            row[given:num_tokens].zero_()
        return self._locs[:, :num_tokens]


def _grown(wanted: int, room: int) -> int:
    """``room``, or the next power of two from ``wanted`` on if that is more."""
    return room if wanted <= room else 1 << (wanted - 1).bit_length()
