"""State copy: one program per (copy, part, piece of the part), in 4-byte words."""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Columns of a part's row; strides and sizes in 4-byte words.
SOURCE_ADDRESS = tl.constexpr(0)
SOURCE_STRIDE = tl.constexpr(1)
TARGET_ADDRESS = tl.constexpr(2)
TARGET_STRIDE = tl.constexpr(3)
NUM_WORDS = tl.constexpr(4)
NUM_COLUMNS = tl.constexpr(5)


@triton.jit
def copy_parts(parts, source_slots, target_slots, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (copies, parts, pieces). parts: (parts, NUM_COLUMNS) int64.

    ALIGNED promises that every address, stride and size is a multiple of 16 bytes.
    """
    part = parts + tl.program_id(1) * NUM_COLUMNS
    num_words = tl.load(part + NUM_WORDS)
    source_slot = tl.load(source_slots + tl.program_id(0)).to(tl.int64)
    target_slot = tl.load(target_slots + tl.program_id(0)).to(tl.int64)
    start = source_slot * tl.load(part + SOURCE_STRIDE)
    end = target_slot * tl.load(part + TARGET_STRIDE)
    source = tl.load(part + SOURCE_ADDRESS).to(tl.pointer_type(tl.int32))
    target = tl.load(part + TARGET_ADDRESS).to(tl.pointer_type(tl.int32))
    if ALIGNED:
        source = tl.multiple_of(source, 16)
        target = tl.multiple_of(target, 16)
        start = tl.multiple_of(start, 4)
        end = tl.multiple_of(end, 4)
        num_words = tl.multiple_of(num_words, 4)
    word = tl.program_id(2).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = (word < num_words) & (source_slot >= 0) & (target_slot >= 0)
    tl.store(target + end + word, tl.load(source + start + word, mask=mask, other=0), mask=mask)
