"""Page moves: one program per (page, piece of the page), in 4-byte words."""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _page(ids, item, HAS_IDS: tl.constexpr):
    """Page that `item` stands for; negative when it is to be skipped."""
    if HAS_IDS:
        return tl.load(ids + item).to(tl.int64)
    else:
        return item.to(tl.int64)


@triton.jit
def move_pages(
    source,
    target,
    source_ids,
    target_ids,
    page_vectors,
    HAS_SOURCE_IDS: tl.constexpr,
    HAS_TARGET_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (pages, pieces). source, target: int32 words, 4 to a vector; a side without ids is
    dense."""
    page_words = page_vectors * 4
    start = _page(source_ids, tl.program_id(0), HAS_SOURCE_IDS)
    end = _page(target_ids, tl.program_id(0), HAS_TARGET_IDS)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (word < page_words) & (start >= 0) & (end >= 0)
    # Multiples of page_words, and no constant in place of a skipped page: that keeps the
    # addresses provably aligned, so that words travel in vectors of 16 bytes.
    words = tl.load(source + start * page_words + word, mask=mask, other=0)
    tl.store(target + end * page_words + word, words, mask=mask)


@triton.jit
def zero_pages(target, ids, page_vectors, BLOCK: tl.constexpr):
    """Grid (pages, pieces). target: int32 words, 4 to a vector. ids: page ids, negative ones are
    skipped."""
    page_words = page_vectors * 4
    page = _page(ids, tl.program_id(0), True)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (word < page_words) & (page >= 0)
    zeros = tl.zeros((BLOCK,), dtype=tl.int32)
    tl.store(target + page * page_words + word, zeros, mask=mask)


@triton.jit
def zero_spans(target, starts, sizes, BLOCK: tl.constexpr):
    """Grid (spans, pieces). target: int32 words; starts, sizes: int64 words, multiples of 4."""
    item = tl.program_id(0)
    start = tl.multiple_of(tl.load(starts + item), 4)
    size = tl.multiple_of(tl.load(sizes + item), 4)
    word = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + start + word, tl.zeros((BLOCK,), dtype=tl.int32), mask=word < size)
