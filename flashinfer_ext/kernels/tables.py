"""Page tables: a few programs per (request, table), and one per (block of new tokens, table).

Nothing that changes from step to step is part of the compiled code: a server that met a batch of a
new size would wait for the compiler.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Columns of a parameter row, one row per table.
GROUP = tl.constexpr(0)
IS_FIRST_STRIPE = tl.constexpr(1)
ENTRY_TOKENS = tl.constexpr(2)
WINDOW_LEFT = tl.constexpr(3)
CHUNK_TOKENS = tl.constexpr(4)
PAGE_MUL = tl.constexpr(5)
INDEX_ADD = tl.constexpr(6)
WRITE_MUL = tl.constexpr(7)
BATCH_ROW = tl.constexpr(8)
LOC_ROW = tl.constexpr(9)
CSR_START = tl.constexpr(10)
DENSE_START = tl.constexpr(11)
MAX_ENTRIES = tl.constexpr(12)
PAGE_TABLE = tl.constexpr(13)
NUM_PARAMS = tl.constexpr(14)


@triton.jit
def _first_entries(kv_lens, q_lens, param):
    """Entries cut off the front; kv_lens and q_lens are numbers or blocks of them."""
    window_left = tl.load(param + WINDOW_LEFT)
    chunk_tokens = tl.load(param + CHUNK_TOKENS)
    first_query = tl.maximum(kv_lens - tl.maximum(q_lens, 1), 0)
    window_start = tl.where(window_left >= 0, tl.maximum(first_query - window_left, 0), 0)
    chunk = tl.maximum(chunk_tokens, 1)
    chunk_start = tl.where(chunk_tokens > 0, first_query // chunk * chunk, 0)
    return tl.maximum(window_start, chunk_start) // tl.load(param + ENTRY_TOKENS)


@triton.jit
def _entries_before(request, kv_lens, q_lens, param, entry_tokens, BLOCK_B: tl.constexpr):
    """Entries of all requests before this one. Every program counts them: cheaper than a second
    launch for a scan."""
    total = tl.zeros((BLOCK_B,), tl.int32)
    for start in range(0, request, BLOCK_B):
        each = start + tl.arange(0, BLOCK_B)
        inside = each < request
        lens = tl.load(kv_lens + each, mask=inside, other=0)
        queries = tl.load(q_lens + each, mask=inside, other=0)
        firsts = _first_entries(lens, queries, param)
        total += tl.where(inside, tl.cdiv(lens - firsts * entry_tokens, entry_tokens), 0)
    return tl.sum(total)


@triton.jit
def _request_entries(
    request,
    req_rows,
    first_pages,
    virtual_rows,
    row_stride,
    page_table,
    num_virtual,
    param,
    indices,
    dense,
    before,
    first_entry,
    count,
    part,
    num_parts,
    PAGE_TOKENS: tl.constexpr,
    ROWS_HOLD_TOKENS: tl.constexpr,
    NULL: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Write one part of a request's entries, every num_parts-th block of them: `count` of all go
    to CSR, whole blocks to the dense row."""
    entry_tokens = tl.load(param + ENTRY_TOKENS)
    page_mul = tl.load(param + PAGE_MUL)
    index_add = tl.load(param + INDEX_ADD)
    csr_start = tl.load(param + CSR_START).to(tl.int64)
    dense_start = tl.load(param + DENSE_START).to(tl.int64)
    max_entries = tl.load(param + MAX_ENTRIES)
    first_page = tl.load(first_pages + request)
    row = virtual_rows + tl.load(req_rows + request).to(tl.int64) * row_stride
    dense_row = dense + dense_start + request.to(tl.int64) * max_entries
    for block in range(part * BLOCK_E, count, BLOCK_E * num_parts):
        entry = block + tl.arange(0, BLOCK_E)
        live = entry < count
        token = (first_entry + entry) * entry_tokens
        column = first_page + token // PAGE_TOKENS
        if ROWS_HOLD_TOKENS:
            virtual_token = tl.load(row + column.to(tl.int64) * PAGE_TOKENS, mask=live, other=-1)
            # Integer division truncates: a missing token must not turn into page 0.
            virtual = tl.where(virtual_token < 0, -1, virtual_token // PAGE_TOKENS)
        else:
            virtual = tl.load(row + column, mask=live, other=-1)
        # Memory may come back from a memory saver with anything in a row that nobody has written.
        named = (virtual >= 0) & (virtual < num_virtual)
        page = tl.load(page_table + virtual, mask=live & named, other=-1)
        page = tl.where(page < 0, NULL, page)
        offset = tl.where(entry_tokens == 1, token % PAGE_TOKENS, 0)
        index = page * page_mul + offset + index_add
        tl.store(indices + csr_start + before + entry, index, mask=live & (csr_start >= 0))
        tl.store(dense_row + entry, index, mask=(entry < max_entries) & (dense_start >= 0))


@triton.jit
def _write_slots(
    block,
    locs,
    num_locs,
    page_table,
    num_virtual,
    param,
    slots,
    PAGE_TOKENS: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Translate one block of virtual tokens to write slots of one table."""
    item = block * BLOCK_L + tl.arange(0, BLOCK_L)
    live = item < num_locs
    loc = tl.load(locs + item, mask=live, other=-1).to(tl.int64)
    live_loc = live & (loc >= 0) & (loc < num_virtual * PAGE_TOKENS)
    page = tl.load(page_table + loc // PAGE_TOKENS, mask=live_loc, other=-1).to(tl.int64)
    slot = page * tl.load(param + WRITE_MUL) + loc % PAGE_TOKENS
    tl.store(slots + item, tl.where(page < 0, -1, slot), mask=live)


# Batches of every size, and parts of one tensor whose addresses depend on the batch's size.
NUMBERS = [
    "batch_stride",
    "num_requests",
    "num_parts",
    "loc_stride",
    "num_locs",
    "row_stride",
    "table_stride",
    "num_virtual",
    "max_batch",
    "max_tokens",
]
PARTS_OF_A_BATCH = ["req_rows", "kv_lens", "q_lens", "first_pages", "locs"]


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=PARTS_OF_A_BATCH)
def build_tables(
    req_rows,
    kv_lens,
    q_lens,
    first_pages,
    batch_stride,
    num_requests,
    num_parts,
    locs,
    loc_stride,
    num_locs,
    virtual_rows,
    row_stride,
    page_tables,
    table_stride,
    num_virtual,
    table_params,
    out_indptr,
    out_kv_lens,
    out_last_page_len,
    max_batch,
    indices,
    dense,
    slots,
    max_tokens,
    PAGE_TOKENS: tl.constexpr,
    ROWS_HOLD_TOKENS: tl.constexpr,
    NULL: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Grid (requests * num_parts + blocks of new tokens, tables); see `TableBuilder.build`."""
    program = tl.program_id(0)
    table = tl.program_id(1)
    param = table_params + table * NUM_PARAMS
    page_table = page_tables + tl.load(param + PAGE_TABLE).to(tl.int64) * table_stride
    if program < num_requests * num_parts:
        # Neighbours share a request: what they read of it is in the cache.
        request = program // num_parts
        part = program % num_parts
        batch_start = tl.load(param + BATCH_ROW) * batch_stride
        entry_tokens = tl.load(param + ENTRY_TOKENS)
        kv_len = tl.load(kv_lens + batch_start + request)
        q_len = tl.load(q_lens + batch_start + request)
        first_entry = _first_entries(kv_len, q_len, param)
        trimmed = kv_len - first_entry * entry_tokens
        count = tl.cdiv(trimmed, entry_tokens)
        # The first part writes the numbers as well, of a request without entries too.
        if part * BLOCK_E < tl.maximum(count, 1):
            before = _entries_before(
                request, kv_lens + batch_start, q_lens + batch_start, param, entry_tokens, BLOCK_B
            )
            if (tl.load(param + IS_FIRST_STRIPE) > 0) & (part == 0):
                group = tl.load(param + GROUP)
                indptr = out_indptr + group * (max_batch + 1)
                tl.store(indptr, 0, mask=request == 0)
                tl.store(indptr + request + 1, before + count)
                tl.store(out_kv_lens + group * max_batch + request, trimmed)
                last = tl.maximum(trimmed - 1, 0) % entry_tokens + 1
                tl.store(out_last_page_len + group * max_batch + request, last)
            _request_entries(
                request,
                req_rows + batch_start,
                first_pages + batch_start,
                virtual_rows,
                row_stride,
                page_table,
                num_virtual,
                param,
                indices,
                dense,
                before,
                first_entry,
                count,
                part,
                num_parts,
                PAGE_TOKENS,
                ROWS_HOLD_TOKENS,
                NULL,
                BLOCK_E,
            )
    else:
        _write_slots(
            program - num_requests * num_parts,
            locs + tl.load(param + LOC_ROW).to(tl.int64) * loc_stride,
            num_locs,
            page_table,
            num_virtual,
            param,
            slots + table.to(tl.int64) * max_tokens,
            PAGE_TOKENS,
            BLOCK_L,
        )
