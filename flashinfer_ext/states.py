"""Recurrent states: their bytes inside a small page, and copies of whole states in one launch.

A state of a group is one small page:

    small page  [layer 0][layer 1] ... [layer L-1][padding]
    layer       [part 0][part 1] ...       for example convolution, then temporal state

Every part starts at a multiple of 16 bytes. A checkpoint is a copy from the slots in use to a page
or back; both sides are given as one tensor per layer and part, so either may be SGLang's own pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from .kernels import states as kernel

ALIGN_BYTES = 16
WORD_BYTES = 4
BLOCK_WORDS = 4096


@dataclass(frozen=True)
class StatePart:
    """Shape and dtype of one part of a layer's state."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def padded_bytes(self) -> int:
        return -(-self.num_bytes // ALIGN_BYTES) * ALIGN_BYTES


@dataclass(frozen=True)
class StateLayout:
    """Geometry of the small pages of one state group; all layers have the same parts."""

    num_layers: int
    parts: tuple[StatePart, ...]
    small_page_bytes: int

    def __post_init__(self) -> None:
        if self.num_layers < 1 or not self.parts:
            raise ValueError(
                f"expected layers and parts, got {self.num_layers} and {len(self.parts)}"
            )
        if self.small_page_bytes < self.payload_bytes or self.small_page_bytes % ALIGN_BYTES:
            raise ValueError(
                f"small_page_bytes: expected a multiple of {ALIGN_BYTES} that is "
                f">= payload {self.payload_bytes}, got {self.small_page_bytes}"
            )

    @property
    def layer_bytes(self) -> int:
        return sum(part.padded_bytes for part in self.parts)

    @property
    def payload_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    def offset_bytes(self, layer: int, part: int) -> int:
        """First byte of a part, counted from the start of a small page."""
        if not 0 <= layer < self.num_layers or not 0 <= part < len(self.parts):
            raise ValueError(
                f"expected layer < {self.num_layers} and part < {len(self.parts)}, "
                f"got {layer} and {part}"
            )
        before = sum(other.padded_bytes for other in self.parts[:part])
        return layer * self.layer_bytes + before


def state_view(buffer: torch.Tensor, layout: StateLayout, layer: int, part: int) -> torch.Tensor:
    """One part of one layer's state, an entry per small page.

    buffer: (bytes,) uint8 contiguous, any device. Returns (P, *shape), the part's dtype, strided,
    sharing the buffer's memory.
    """
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
        raise ValueError(
            f"buffer: expected contiguous 1-D uint8, got {buffer.dtype} {tuple(buffer.shape)}"
        )
    pages = buffer.numel() // layout.small_page_bytes
    spec = layout.parts[part]
    start = layout.offset_bytes(layer, part)
    rows = buffer[: pages * layout.small_page_bytes].view(pages, layout.small_page_bytes)
    flat = rows[:, start : start + spec.num_bytes].view(spec.dtype)
    return flat.unflatten(1, spec.shape) if spec.shape else flat.squeeze(1)


def state_views(buffer: torch.Tensor, layout: StateLayout) -> list[torch.Tensor]:
    """`state_view` of every layer and part, layer by layer."""
    return [
        state_view(buffer, layout, layer, part)
        for layer in range(layout.num_layers)
        for part in range(len(layout.parts))
    ]


class StateCopier:
    """Copies all parts of all layers from slots of one place to slots of another, in one launch.

    sources, targets: one tensor per layer and part, (slots, *shape), inner dimensions contiguous,
    same bytes per slot in a pair, all on one device; they must outlive the copier.
    """

    def __init__(self, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
        check_state_pairs(sources, targets)
        self._keep = (tuple(sources), tuple(targets))
        rows = [_part_row(source, target) for source, target in zip(*self._keep, strict=True)]
        self.device = sources[0].device
        self.parts = torch.tensor(rows, dtype=torch.int64).to(self.device)
        self._max_words = max(row[kernel.NUM_WORDS.value] for row in rows)
        self._aligned = all(_is_aligned(row) for row in rows)

    def copy(self, source_slots: torch.Tensor, target_slots: torch.Tensor) -> None:
        """Copy state source_slots[i] to target_slots[i]; a negative slot on a side skips the pair.

        source_slots, target_slots: (n,) int32 or int64, on the copier's device. Where sources and
        targets share memory, no target may also be a source.
        """
        for name, slots in (("source_slots", source_slots), ("target_slots", target_slots)):
            if slots.dtype not in (torch.int32, torch.int64) or slots.shape != source_slots.shape:
                raise ValueError(
                    f"{name}: expected int32 or int64 {tuple(source_slots.shape)}, "
                    f"got {slots.dtype} {tuple(slots.shape)}"
                )
            if slots.dim() != 1 or not slots.is_contiguous() or slots.device != self.device:
                raise ValueError(f"{name}: expected contiguous 1-D on {self.device}")
        if source_slots.numel() == 0:
            return
        pieces = triton.cdiv(self._max_words, BLOCK_WORDS)
        kernel.copy_parts[(source_slots.numel(), len(self.parts), pieces)](
            self.parts, source_slots, target_slots, ALIGNED=self._aligned, BLOCK=BLOCK_WORDS
        )


def check_state_pairs(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Raise ValueError unless source i can be copied to target i in whole words."""
    if not sources or len(sources) != len(targets):
        raise ValueError(f"targets: expected {len(sources)} > 0 tensors, got {len(targets)}")
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if source.shape[1:] != target.shape[1:] or source.dtype != target.dtype:
            raise ValueError(
                f"targets[{index}]: expected {source.dtype} of {tuple(source.shape[1:])}, "
                f"got {target.dtype} of {tuple(target.shape[1:])}"
            )
        for tensor in (source, target):
            if tensor.shape[0] and not tensor[0].is_contiguous():
                raise ValueError(f"part {index}: expected contiguous states, got {tensor.stride()}")
        row = _part_row(source, target, unit=1)
        if any(value % WORD_BYTES for value in row):
            raise ValueError(f"part {index}: expected multiples of {WORD_BYTES} bytes, got {row}")


def _part_row(source: torch.Tensor, target: torch.Tensor, unit: int = WORD_BYTES) -> list[int]:
    """A row of the kernel's part table; addresses in bytes, strides and size in `unit` bytes."""
    row = [0] * kernel.NUM_COLUMNS.value
    row[kernel.SOURCE_ADDRESS.value] = source.data_ptr()
    row[kernel.SOURCE_STRIDE.value] = source.stride(0) * source.itemsize // unit
    row[kernel.TARGET_ADDRESS.value] = target.data_ptr()
    row[kernel.TARGET_STRIDE.value] = target.stride(0) * target.itemsize // unit
    row[kernel.NUM_WORDS.value] = math.prod(source.shape[1:]) * source.itemsize // unit
    return row


def _is_aligned(row: list[int]) -> bool:
    """Every address, stride and size of the row is a multiple of 16 bytes."""
    addresses = {kernel.SOURCE_ADDRESS.value, kernel.TARGET_ADDRESS.value}
    units = [1 if column in addresses else WORD_BYTES for column in range(len(row))]
    return all(value * unit % ALIGN_BYTES == 0 for value, unit in zip(row, units, strict=True))
