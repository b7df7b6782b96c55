"""How close do the KV write and the page moves come to the bandwidth of a plain copy?

Bandwidth counts bytes read plus bytes written. The measure is the best that `Tensor.copy_` reaches
on this device for 1 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from flashinfer_ext import GroupLayout, page_views, pages
from flashinfer_ext.kv_write import kv_write
from flashinfer_ext.states import StateCopier, StateLayout, StatePart, state_views

from .result import Row
from .timing import gpu_times

BF16 = torch.bfloat16
TARGET_SHARE = 0.85
GIB = 1 << 30


def rows() -> Iterator[Row]:
    source, target = (torch.zeros(GIB, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy = share_of(1.0, 2 * GIB, partial(target.copy_, source))
    yield Row("Tensor.copy_ of 1 GiB", copy, "GB/s")
    torch.manual_seed(0)
    for name, moved, call, target_share in (*kv_writes(), *page_moves(), state_copy()):
        share = share_of(copy, moved, call)
        yield Row(name, share, "of copy", copy, target_share, at_least=True)


def share_of(reference_gb_s: float, moved_bytes: int, call: Callable[[], object]) -> float:
    """Bandwidth of the call in GB/s over the reference."""
    seconds = gpu_times({"call": call})["call"].median_us * 1e-6
    return moved_bytes / seconds / 1e9 / reference_gb_s


Case = tuple[str, int, Callable[[], object], float | None]


def kv_writes() -> Iterator[Case]:
    """Prefill-sized writes have a target; a decode step is too small to fill the memory."""
    layout = GroupLayout(10, 16, 8, 128, 128, BF16, 10 * 2 * 16 * 8 * 128 * 2)
    buffer = torch.zeros(layout.small_page_bytes * 6000, dtype=torch.uint8, device="cuda")
    caches = page_views(buffer, layout, 5)
    for tokens, target in ((65536, TARGET_SHARE), (8192, TARGET_SHARE), (256, None)):
        k, v = torch.randn(2, tokens, 8, 128, device="cuda", dtype=BF16).unbind()
        # Whole pages out of order, as a prefill writes them.
        order = torch.randperm(5999, device="cuda")[: tokens // 16] + 1
        slots = (order[:, None] * 16 + torch.arange(16, device="cuda")).flatten()
        kv_write(k, v, *caches, slots)
        if not torch.equal(caches[0][slots // 16, slots % 16], k):
            raise AssertionError("kv_write: the cache differs from what was written")
        yield (
            f"KV write, {tokens} tokens, one layer",
            4 * k.numel() * 2,
            partial(kv_write, k, v, *caches, slots),
            target,
        )


def page_moves() -> Iterator[Case]:
    for page_bytes in (64 << 10, 256 << 10, 1280 << 10):
        count = GIB // page_bytes
        buffer = torch.randint(0, 256, (2 * GIB,), dtype=torch.uint8, device="cuda")
        order = torch.randperm(2 * count, device="cuda")
        source, target = order[:count].contiguous(), order[count:].contiguous()
        pages.copy_pages(buffer, page_bytes, source, target)
        moved = buffer[: 2 * count * page_bytes].view(-1, page_bytes)
        if not torch.equal(moved[source], moved[target]):
            raise AssertionError("copy_pages: copies differ from their sources")
        name = f"{page_bytes >> 10} KiB, {count} pages"
        yield (
            f"page copy, {name}",
            2 * count * page_bytes,
            partial(pages.copy_pages, buffer, page_bytes, source, target),
            TARGET_SHARE,
        )
        yield (
            f"page zero, {name} (writes only)",
            count * page_bytes,
            partial(pages.zero_pages, buffer, page_bytes, target),
            None,
        )


def state_copy() -> Case:
    """48 layers of a 16-head linear attention with a short convolution; 8 checkpoints at once."""
    parts = (StatePart((6144, 3), BF16), StatePart((16, 128, 128), torch.float32))
    payload = 48 * sum(part.padded_bytes for part in parts)
    layout = StateLayout(48, parts, payload)
    buffer = torch.zeros(payload * 18, dtype=torch.uint8, device="cuda")
    views = state_views(buffer, layout)
    copier = StateCopier(views, views)
    source, target = torch.arange(16, device="cuda").view(2, 8)
    return (
        "state copy, 48 layers, 8 checkpoints",
        2 * 8 * payload,
        partial(copier.copy, source, target),
        None,
    )
