"""Where a group's bytes lie: small pages, large pages and their least common multiple.

::

    pool (one byte buffer)
    ├── large page 0 ──────────────┬── large page 1 ───────────┬── large page 2 ──── …
    │   reserved, all zero         │   owned by group 0         │   owned by group 1
    │                              │ ┌────┬────┬────┬────┐      │ ┌─────────┬─────────┐
    │                              │ │ s4 │ s5 │ s6 │ s7 │      │ │   s4    │   s5    │
    │                              │ └────┴────┴────┴────┘      │ └─────────┴─────────┘

A *small page* holds ``page_size`` tokens of all layers of one stripe of one group, contiguous:

    byte(p, layer, part, slot) = p * small_page_bytes + layer * layer_bytes
                                 + (0 if part is K else k_bytes * page_size)
                                 + slot * (k_bytes if part is K else v_bytes)

with ``p`` the small page's number in the whole buffer, whoever owns the bytes around it. A
*large page* is the least common multiple of all small pages, so every group cuts it without a
remainder. A group may be split into equal *stripes* of layers: each stripe has a small page of
its own for every page of tokens, which makes small pages smaller and more alike, at the price of
one more page table.

The small page of a group of recurrent states holds one state of all layers of a stripe instead:
for every layer its parts (convolution, temporal) one after the other, each on a 16-byte boundary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from jenga_sglang.core.dependency import Dependency
from jenga_sglang.core.ids import round_up

TOLD_APART = " from layer "
ALIGN_BYTES = 16  # kernels load 16 bytes at a time, from the first byte of every small page on


@dataclass(frozen=True)
class LayerGroupSpec:
    """Layers with the same dependency, row shape and dtype.

    ``k_bytes`` and ``v_bytes`` are the bytes of one token's K and V row in one layer, on this
    rank; a latent row (MLA) is all K. A group of recurrent states has no rows: ``state_bytes``
    are the bytes of every part of one layer's state. ``layers`` are the model's layer ids in
    ascending order. ``is_read_late``: in one step, some layer's rows are read again after a later
    layer of the group has written its own.
    """

    name: str
    layers: tuple[int, ...]
    dependency: Dependency
    k_bytes: int = 0
    v_bytes: int = 0
    state_bytes: tuple[int, ...] = ()
    is_read_late: bool = False

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"group {self.name}: expected ascending layer ids, got {self.layers}")
        if self.state_bytes:
            if self.row_bytes or min(self.state_bytes) < 1:
                raise ValueError(f"group {self.name}: expected state_bytes > 0 and no rows")
        elif self.k_bytes < 1 or self.v_bytes < 0:
            raise ValueError(f"group {self.name}: expected k_bytes > 0 and v_bytes >= 0")

    @property
    def is_state(self) -> bool:
        """Whether a small page holds one state rather than ``page_size`` tokens."""
        return bool(self.state_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in one layer, K and V together; 0 for a state."""
        return self.k_bytes + self.v_bytes

    @property
    def bytes_per_token(self) -> int:
        return len(self.layers) * self.row_bytes

    @property
    def layer_state_bytes(self) -> int:
        """Bytes of one layer's state, every part on a 16-byte boundary; 0 for rows."""
        return sum(round_up(part, ALIGN_BYTES) for part in self.state_bytes)

    def layer_page_bytes(self, page_size: int) -> int:
        """Bytes that one layer adds to a small page."""
        return self.layer_state_bytes if self.is_state else page_size * self.row_bytes


def told_apart(specs: Iterable[LayerGroupSpec]) -> tuple[LayerGroupSpec, ...]:
    """``specs`` with a name each: groups of one name get the first of their layers added to it."""
    specs = tuple(specs)
    names = [spec.name for spec in specs]
    return tuple(
        replace(spec, name=f"{spec.name}{TOLD_APART}{spec.layers[0]}")
        if names.count(spec.name) > 1
        else spec
        for spec in specs
    )


@dataclass(frozen=True)
class GroupGeometry:
    """One group's cut of the pool. ``padding_bytes`` fill the end of every small page."""

    spec: LayerGroupSpec
    page_size: int
    stripes: int = 1
    padding_bytes: int = 0

    def __post_init__(self) -> None:
        if len(self.spec.layers) % self.stripes:
            raise ValueError(
                f"group {self.spec.name}: {len(self.spec.layers)} layers do not split into "
                f"{self.stripes} equal stripes"
            )

    @property
    def layers_per_stripe(self) -> int:
        return len(self.spec.layers) // self.stripes

    @property
    def payload_bytes(self) -> int:
        return self.layers_per_stripe * self.spec.layer_page_bytes(self.page_size)

    @property
    def small_page_bytes(self) -> int:
        return self.payload_bytes + self.padding_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes that ``page_size`` tokens (or one state) of the whole group take: one small page
        a stripe."""
        return self.stripes * self.small_page_bytes


@dataclass(frozen=True)
class Geometry:
    """The cut of one pool: its groups, the large page, and how many large pages there are.

    ``pool_bytes`` is the whole buffer. Large page 0 is reserved: small page 0 of every group lies
    in it, stays zero, and is what page tables name where there is no page. What the last large
    page leaves over stays unused.
    """

    groups: tuple[GroupGeometry, ...]
    page_size: int
    pool_bytes: int

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ValueError(f"expected page_size >= 1, got {self.page_size}")
        if not self.groups:
            raise ValueError("expected at least one layer group")
        if any(g.page_size != self.page_size for g in self.groups):
            raise ValueError("expected one page_size for all groups")
        if self.num_large_pages < 1:
            raise ValueError(
                f"a pool of {self.pool_bytes:,} bytes has no room for one large page of "
                f"{self.large_page_bytes:,} bytes beside the reserved one"
            )

    @property
    def large_page_bytes(self) -> int:
        return math.lcm(*(g.small_page_bytes for g in self.groups))

    @property
    def num_large_pages(self) -> int:
        """Large pages that can be handed out; the reserved page is not among them."""
        return self.pool_bytes // self.large_page_bytes - 1

    def small_per_large(self, group: int) -> int:
        return self.large_page_bytes // self.groups[group].small_page_bytes

    def max_pages(self, group: int) -> int:
        """Pages of ``page_size`` tokens that the group could hold if it had the whole pool; of a
        group of states, states."""
        small = self.num_large_pages * self.small_per_large(group)
        return small // self.groups[group].stripes

    def resized(self, pool_bytes: int) -> Geometry:
        """The same cut for another budget."""
        return replace(self, pool_bytes=pool_bytes)


def exact_lcm(specs: tuple[LayerGroupSpec, ...], page_size: int, pool_bytes: int) -> Geometry:
    """The paper's layout: one stripe a group, no padding (Jenga §4.1)."""
    groups = tuple(GroupGeometry(spec, page_size) for spec in specs)
    return Geometry(groups, page_size, pool_bytes)
