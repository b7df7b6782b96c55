"""Zero, copy, gather and scatter small or large pages of the pool, by id list, in place.

Ids are device tensors and may hold -1, which is skipped: lists of a fixed length can be part of a
CUDA graph. All moves are of raw bytes in 16-byte vectors; the result is bit for bit the source.
"""

from __future__ import annotations

import torch
import triton

from .kernels import pages as kernel

VECTOR_BYTES = 16
WORD_BYTES = 4
BLOCK_WORDS = 4096


def zero_pages(buffer: torch.Tensor, page_bytes: int, ids: torch.Tensor) -> None:
    """Fill pages with zero bytes.

    buffer: (bytes,) uint8. ids: (n,) int32 or int64, same device.
    """
    words = _words("buffer", buffer, page_bytes)
    _check_ids("ids", ids, buffer)
    if ids.numel():
        grid = _grid(ids.numel(), page_bytes // WORD_BYTES)
        kernel.zero_pages[grid](words, ids, page_bytes // VECTOR_BYTES, BLOCK=BLOCK_WORDS)


def zero_spans(
    buffer: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor, max_bytes: int
) -> None:
    """Fill byte ranges with zero, pages of several groups in one launch.

    buffer: (bytes,) uint8. starts, sizes: (n,) int64, in units of 4 bytes and multiples of 4, same
    device; a size of 0 skips the range. `max_bytes` bounds every size and fixes the grid.
    """
    words = _words("buffer", buffer, max_bytes)
    for name, tensor in (("starts", starts), ("sizes", sizes)):
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name}: expected int64, got {tensor.dtype}")
        _check_ids(name, tensor, buffer)
    if starts.shape != sizes.shape:
        raise ValueError(f"sizes: expected {tuple(starts.shape)}, got {tuple(sizes.shape)}")
    if starts.numel():
        grid = _grid(starts.numel(), max_bytes // WORD_BYTES)
        kernel.zero_spans[grid](words, starts, sizes, BLOCK=BLOCK_WORDS)


def copy_pages(
    buffer: torch.Tensor, page_bytes: int, source_ids: torch.Tensor, target_ids: torch.Tensor
) -> None:
    """Copy page source_ids[i] to page target_ids[i]; a negative id on either side skips the pair.

    No target may also be a source, nor a target twice: pages are copied in no particular order.
    buffer: (bytes,) uint8. source_ids, target_ids: (n,) int32 or int64, same device.
    """
    if source_ids.shape != target_ids.shape:
        raise ValueError(
            f"target_ids: expected {tuple(source_ids.shape)}, got {tuple(target_ids.shape)}"
        )
    _move(buffer, buffer, page_bytes, source_ids, target_ids)


def gather_pages(
    buffer: torch.Tensor, page_bytes: int, ids: torch.Tensor, out: torch.Tensor
) -> None:
    """Copy page ids[i] to out[i]; rows with a negative id keep what they hold.

    buffer: (bytes,) uint8. ids: (n,) int32 or int64. out: (n, page_bytes) uint8 contiguous.
    """
    _check_rows("out", out, ids, page_bytes)
    _move(buffer, out.view(-1), page_bytes, ids, None)


def scatter_pages(
    rows: torch.Tensor, buffer: torch.Tensor, page_bytes: int, ids: torch.Tensor
) -> None:
    """Copy rows[i] to page ids[i]; rows with a negative id are skipped, no id may occur twice.

    rows: (n, page_bytes) uint8 contiguous. buffer: (bytes,) uint8. ids: (n,) int32 or int64.
    """
    _check_rows("rows", rows, ids, page_bytes)
    _move(rows.view(-1), buffer, page_bytes, None, ids)


def _move(
    source: torch.Tensor,
    target: torch.Tensor,
    page_bytes: int,
    source_ids: torch.Tensor | None,
    target_ids: torch.Tensor | None,
) -> None:
    """One launch; a side without ids is read or written row after row."""
    source_words = _words("source", source, page_bytes)
    target_words = _words("target", target, page_bytes)
    given = [ids for ids in (source_ids, target_ids) if ids is not None]
    for ids in given:
        _check_ids("ids", ids, source)
    count = given[0].numel()
    if count == 0:
        return
    kernel.move_pages[_grid(count, page_bytes // WORD_BYTES)](
        source_words,
        target_words,
        given[0] if source_ids is None else source_ids,
        given[0] if target_ids is None else target_ids,
        page_bytes // VECTOR_BYTES,
        HAS_SOURCE_IDS=source_ids is not None,
        HAS_TARGET_IDS=target_ids is not None,
        BLOCK=BLOCK_WORDS,
    )


def _grid(count: int, page_words: int) -> tuple[int, int]:
    return count, triton.cdiv(page_words, BLOCK_WORDS)


def _words(name: str, buffer: torch.Tensor, page_bytes: int) -> torch.Tensor:
    """The buffer as int32 words, its ragged end left out."""
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous 1-D uint8, got {buffer.dtype} {tuple(buffer.shape)}"
        )
    if page_bytes < 1 or page_bytes % VECTOR_BYTES or buffer.data_ptr() % VECTOR_BYTES:
        raise ValueError(
            f"{name}: expected address and page bytes in multiples of {VECTOR_BYTES}, "
            f"got {buffer.data_ptr()} and {page_bytes}"
        )
    whole = buffer.numel() // WORD_BYTES * WORD_BYTES
    return buffer[:whole].view(torch.int32)


def _check_ids(name: str, ids: torch.Tensor, buffer: torch.Tensor) -> None:
    if ids.dtype not in (torch.int32, torch.int64) or ids.dim() != 1 or not ids.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous 1-D int32 or int64, got {ids.dtype} {tuple(ids.shape)}"
        )
    if ids.device != buffer.device:
        raise ValueError(f"{name}: expected a tensor on {buffer.device}, got {ids.device}")


def _check_rows(name: str, rows: torch.Tensor, ids: torch.Tensor, page_bytes: int) -> None:
    expected = (ids.numel(), page_bytes)
    if rows.shape != expected or rows.dtype != torch.uint8 or not rows.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous uint8 {expected}, got {rows.dtype} {tuple(rows.shape)}"
        )
