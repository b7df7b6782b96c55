"""How many histories stay hits in a pool and in host memory below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.needs import Needs
from jenga_sglang.plan.model import Model


@dataclass(frozen=True)
class HostRoom:
    """Of each length: the bytes that a hit of it needs, and the histories of which the pool and
    host memory of ``host_bytes`` hold so much, each tier by itself. ``all_rows_bytes`` is what
    every row of every layer would take."""

    host_bytes: int
    num_large_pages: int
    hit_bytes: tuple[int, ...]
    all_rows_bytes: tuple[int, ...]
    in_pool: tuple[float, ...]
    in_host: tuple[float, ...]


def host_room(
    model: Model, geometry: Geometry, host_bytes: int, lengths: Sequence[int]
) -> HostRoom:
    """Raises ``ValueError`` where there is no host tier, or no room for one large page in it."""
    if model.image_tokens:
        raise ValueError("--host-bytes: there is no host tier for encoder-decoder models")
    host = geometry.resized(host_bytes)
    needs = Needs(geometry, model.max_length)
    pages = [[_pages(needs, g, n) for g in needs.groups] for n in lengths]
    large = [_large_pages(geometry, counts) for counts in pages]
    return HostRoom(
        host_bytes,
        host.num_large_pages,
        tuple(_bytes(geometry, counts) for counts in pages),
        tuple(sum(spec.bytes_per_token for spec in model.specs) * n for n in lengths),
        tuple(geometry.num_large_pages / n for n in large),
        tuple(host.num_large_pages / n for n in large),
    )


def _pages(needs: Needs, group: int, length: int) -> int:
    """Whole pages of ``length`` tokens that ``group`` needs to go on; a state is one."""
    whole = length // needs.page_size * needs.page_size
    return sum(stop - start for start, stop in needs.of_text(group, whole))


def _large_pages(geometry: Geometry, pages: Sequence[int]) -> float:
    return sum(
        n * cut.stripes / geometry.small_per_large(g)
        for g, (n, cut) in enumerate(zip(pages, geometry.groups, strict=True))
    )


def _bytes(geometry: Geometry, pages: Sequence[int]) -> int:
    return sum(n * cut.page_bytes for n, cut in zip(pages, geometry.groups, strict=True))
