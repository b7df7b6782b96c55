"""The layer groups of a model and what a scheduler step on it costs."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]

SUPPORTED_KINDS = ("full", "swa", "chunked", "mamba")
# Bytes of an element in the pool of a replay. Rows of another dtype get as many elements as make
# up their bytes: nobody reads them.
STORED_BYTES = 2
# Smallest head_dim that a shrunk group keeps.
MIN_HEAD_DIM = 8


class NotYetSupportedError(ValueError):
    """The geometry is well formed but this benchmark cannot run it yet."""


@dataclass(frozen=True)
class Group:
    """Layers with one dependency and one row shape. `window` is in tokens, None without one; of
    kind chunked, it is the chunk. Layers of kind mamba have no rows but a state for every request,
    `state_bytes` each."""

    kind: str
    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    dtype_bytes: int = 2
    window: int | None = None
    state_bytes: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of the K and the V row of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers of the group."""
        return self.layers * self.row_bytes

    @property
    def request_bytes(self) -> int:
        """Bytes of one request's states in all layers of the group."""
        return self.layers * self.state_bytes

    @property
    def stored_state(self) -> int:
        """Elements of `STORED_BYTES` in one layer's state."""
        return self.state_bytes // STORED_BYTES

    @property
    def stored_head_dim(self) -> int:
        """Elements of `STORED_BYTES` in one head's row."""
        return self.head_dim * self.dtype_bytes // STORED_BYTES

    def needed_tokens(self, lengths: Lengths) -> Lengths:
        """Return how many tokens a history of each length still depends on."""
        if self.window is None:
            return lengths
        if self.kind == "chunked":
            return lengths - np.maximum(lengths - 1, 0) // self.window * self.window
        return np.minimum(lengths, self.window)

    def needed_start(self, length: int) -> int:
        """Return the first token of the needed range `[start, length)`."""
        return length - int(self.needed_tokens(np.array(length)))


@dataclass(frozen=True)
class Cost:
    """Seconds of one scheduler step: constant, per token, per request, per KV byte read."""

    step: float
    prefill_tok: float
    decode_req: float
    kv_byte: float

    def step_seconds(self, prefill_tokens: int, decode_requests: int, kv_bytes: int) -> float:
        """Return the simulated duration of one step."""
        return (
            self.step
            + self.prefill_tok * prefill_tokens
            + self.decode_req * decode_requests
            + self.kv_byte * kv_bytes
        )


@dataclass(frozen=True)
class Geometry:
    """Groups, the group of each layer, and the cost model. Never mutated. ``factor`` is what it
    shrinks by where another model shrinks with it."""

    name: str
    groups: tuple[Group, ...]
    order: tuple[int, ...]
    cost: Cost
    factor: int | None = None

    @property
    def row_groups(self) -> list[Group]:
        """Groups that keep a row for every token."""
        return [g for g in self.groups if g.kind != "mamba"]

    @property
    def state_groups(self) -> list[Group]:
        """Groups that keep a state for every request."""
        return [g for g in self.groups if g.kind == "mamba"]

    @property
    def request_bytes(self) -> int:
        """Bytes of one request's states."""
        return sum(g.request_bytes for g in self.state_groups)

    def kv_bytes_read(self, lengths: Lengths) -> int:
        """Return the bytes that one step reads for requests of these lengths: KV and states."""
        rows = sum(g.token_bytes * int(g.needed_tokens(lengths).sum()) for g in self.row_groups)
        return rows + self.request_bytes * len(lengths)

    @property
    def shrink_factor(self) -> int:
        """Return the factor that every head_dim and state, so every byte size, is divided by.

        It keeps the smallest head_dim at 8 or more, so a real budget fits in RAM while token
        capacities and all ratios between groups stay those of the real model.
        """
        if self.factor is not None:
            return self.factor
        dims = [g.stored_head_dim for g in self.row_groups]
        common = math.gcd(*dims, *(g.stored_state for g in self.state_groups))
        smallest = min(dims)
        factors = (f for f in range(1, common + 1) if common % f == 0)
        return max((f for f in factors if smallest // f >= MIN_HEAD_DIM), default=1)

    def require_supported(self) -> None:
        """Raise `NotYetSupportedError` for what the dummy model cannot express."""
        for group in self.groups:
            if group.kind not in SUPPORTED_KINDS:
                raise NotYetSupportedError(
                    f"{self.name}: groups of kind {group.kind!r} cannot be replayed yet; "
                    f"supported are {', '.join(SUPPORTED_KINDS)}"
                )
        if not self.row_groups or len(self.state_groups) > 1:
            raise NotYetSupportedError(
                f"{self.name}: a geometry needs a group with rows, and at most one of kind mamba"
            )
        if self.state_groups and any(g.window is not None for g in self.row_groups):
            raise NotYetSupportedError(
                f"{self.name}: windows beside states cannot be replayed: no model that SGLang and "
                "Jenga both serve has them"
            )


def load_geometry(path: Path) -> Geometry:
    """Read a geometry file; raise `ValueError` when layers and order disagree."""
    raw = json.loads(path.read_text())
    groups = tuple(_group(entry) for entry in raw["groups"])
    default_order = [i for i, group in enumerate(groups) for _ in range(group.layers)]
    order = tuple(raw.get("order", default_order))
    for index, group in enumerate(groups):
        if order.count(index) != group.layers:
            raise ValueError(
                f"{path}: group {index} says {group.layers} layers, order has {order.count(index)}"
            )
    return Geometry(raw["name"], groups, order, Cost(**raw["cost"]))


def _group(entry: dict[str, Any]) -> Group:
    group = Group(**entry)
    forgets = group.kind in ("swa", "chunked")
    if group.kind in SUPPORTED_KINDS and forgets != (group.window is not None):
        raise ValueError(f"group {entry}: a window belongs to kinds swa and chunked, and no other")
    if (group.kind == "mamba") != bool(group.state_bytes) or bool(group.row_bytes) == bool(
        group.state_bytes
    ):
        raise ValueError(f"group {entry}: kind mamba has state_bytes, all others rows")
    return group
