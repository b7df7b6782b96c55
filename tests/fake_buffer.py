"""The bytes of a pool, each with a pattern that tells whose it is.

The pattern tells the group, the layer, K or V, and the whole history up to the token.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry
from jenga_sglang.core.ids import Ids

Hashes = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

POISON = 0xA5
MASK = (1 << 64) - 1


def history_hashes(namespace: Hashable, tokens: Sequence[int]) -> Hashes:
    """One hash per token, of all tokens up to and with it; shape (tokens,)."""
    value = 1
    hashes = []
    name = [ord(letter) for letter in repr(namespace)]
    for token in [*name, *tokens]:
        value = (value ^ (token + 1)) * 0x9E3779B97F4A7C15 & MASK
        value ^= value >> 29
        hashes.append(value)
    return np.array(hashes[len(name) :], np.uint64)


def pattern(hashes: Hashes, place: tuple[int, int, int], size: int) -> Bytes:
    """What ``size`` bytes of each token hold at ``place`` (group, layer, part); shape (n, size)."""
    salt = history_hashes("place", place)[-1]
    mixed = (hashes ^ salt) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    rows = mixed.view(np.uint8).reshape(-1, 8)
    return np.tile(rows, -(-size // 8))[:, :size]


class Buffer:
    """The pool's bytes, addressed as `core.cut.geometry` says and in no other way."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.bytes: Bytes = np.zeros(geometry.pool_bytes, np.uint8)

    def write(
        self, group: int, small: Ids, slots: Ids, hashes: Hashes, stripes: range | None = None
    ) -> None:
        """Store. ``small`` has shape (tokens, stripes), ``slots`` and ``hashes`` (tokens,). Of all
        ``stripes``, or of these."""
        for place, index in self._rows(group, small, slots, stripes):
            self.bytes[index] = pattern(hashes, place, index.shape[1])

    def check(
        self,
        group: int,
        small: Ids,
        slots: Ids,
        hashes: Hashes,
        what: str,
        stripes: range | None = None,
    ) -> None:
        """Fail unless every layer, of these ``stripes``, holds just these tokens."""
        for place, index in self._rows(group, small, slots, stripes):
            wrong = (self.bytes[index] != pattern(hashes, place, index.shape[1])).any(axis=1)
            if wrong.any():
                token = int(wrong.argmax())
                page = small[token].tolist()
                poisoned = (self.bytes[index[token]] == POISON).all()
                raise AssertionError(
                    f"{what}: group {group}, small pages {page}, slot {slots[token]}, layer and "
                    f"part {place[1:]}: {'freed' if poisoned else 'overwritten'}"
                )

    def _rows(
        self, group: int, small: Ids, slots: Ids, stripes: range | None = None
    ) -> Iterator[tuple[tuple[int, int, int], NDArray[np.int64]]]:
        """The bytes of each layer's K and V rows, as indices of shape (tokens, row bytes)."""
        cut = self.geometry.groups[group]
        for stripe in range(cut.stripes) if stripes is None else stripes:
            pages = small[:, stripe].astype(np.int64)
            for layer in range(cut.layers_per_stripe):
                model_layer = cut.spec.layers[stripe * cut.layers_per_stripe + layer]
                spec = cut.spec
                for part, size in enumerate(spec.state_bytes or (spec.k_bytes, spec.v_bytes)):
                    if spec.is_state:
                        first = state_address(cut, pages, layer, part)
                    else:
                        first = row_address(cut, pages, layer, part, slots.astype(np.int64))
                    yield (group, model_layer, part), first[:, None] + np.arange(size)

    def copy(self, group: int, source: Ids, target: Ids) -> None:
        """Copy whole small pages."""
        size = self.geometry.groups[group].small_page_bytes
        for src, dst in zip(source.tolist(), target.tolist(), strict=True):
            self.bytes[dst * size : (dst + 1) * size] = self.bytes[src * size : (src + 1) * size]

    def check_zero(self, group: int, small: Ids) -> None:
        """Fail unless these small pages hold the state before any token."""
        size = self.geometry.groups[group].small_page_bytes
        for page in small.tolist():
            assert not self.bytes[page * size : (page + 1) * size].any(), "state is not zero"

    def poison(self, group: int, small: Ids) -> None:
        size = self.geometry.groups[group].small_page_bytes
        for page in small.tolist():
            self.bytes[page * size : (page + 1) * size] = POISON

    def check_reserved(self) -> None:
        """The reserved large page stays zero."""
        assert not self.bytes[: self.geometry.large_page_bytes].any(), "reserved page was written"


def row_address(
    cut: GroupGeometry,
    page: NDArray[np.int64],
    layer: int,
    part: int,
    slot: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The formula of `core.cut.geometry`: first byte of a token's K (part 0) or V (part 1) row."""
    k_bytes, v_bytes = cut.spec.k_bytes, cut.spec.v_bytes
    layer_bytes = cut.page_size * (k_bytes + v_bytes)
    in_layer = slot * k_bytes if part == 0 else k_bytes * cut.page_size + slot * v_bytes
    return page * cut.small_page_bytes + layer * layer_bytes + in_layer


def state_address(
    cut: GroupGeometry, page: NDArray[np.int64], layer: int, part: int
) -> NDArray[np.int64]:
    """First byte of a part of a layer's state, as `core.cut.geometry` says."""
    aligned = [-(-size // 16) * 16 for size in cut.spec.state_bytes]
    return page * cut.small_page_bytes + layer * sum(aligned) + sum(aligned[:part])
