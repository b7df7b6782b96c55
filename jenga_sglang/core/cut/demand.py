"""What one running request takes from the pool: the arithmetic of planning and of `jenga plan`.

A request of ``length`` tokens holds, in every group, the pages of `Dependency.peak_pages`, each
as one small page per stripe, in large pages of its own (Jenga §5.4: request-aware placement).
Where drafts are made it holds pages of a tail behind them, in every group with rows.
Its *ideal bytes* are those of the tokens and states that it needs, with nothing rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec
from jenga_sglang.core.ids import ceil_div


def ideal_bytes(spec: LayerGroupSpec, length: int) -> int:
    """Bytes that the group needs for one request, without any rounding."""
    layer_bytes = spec.layer_state_bytes if spec.is_state else spec.row_bytes
    return len(spec.layers) * layer_bytes * spec.dependency.peak_tokens(length)


def small_pages(group: GroupGeometry, length: int, tail_tokens: int = 0) -> int:
    """Small pages that the group holds for one request, all stripes together."""
    tail = 0 if group.spec.is_state else ceil_div(tail_tokens, group.page_size)
    return group.stripes * (group.spec.dependency.peak_pages(length, group.page_size) + tail)


def large_pages(
    groups: Sequence[GroupGeometry], large_page_bytes: int, length: int, tail_tokens: int = 0
) -> int:
    """Large pages that one request takes when it shares none with another."""
    return sum(
        ceil_div(
            small_pages(group, length, tail_tokens), large_page_bytes // group.small_page_bytes
        )
        for group in groups
    )
