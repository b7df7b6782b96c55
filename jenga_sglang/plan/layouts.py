"""Memory layouts side by side: how many running requests each fits into the same bytes.

A layout is one or several pools; a request takes units of each, and the scarcest pool decides.
Only running requests are counted: no cached prefixes, no slack for chunked prefill. Every pool
sets its first unit (token, state, block, large page) aside as the target of padding, as all of
these systems do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jenga_sglang.core.cut.demand import ideal_bytes, large_pages
from jenga_sglang.core.cut.explain import human_bytes
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.plan.model import Layer, Model
from jenga_sglang.plan.stock import DEFAULT_STATE_RATIO, DEFAULT_WINDOW_RATIO, STATES_PER_REQUEST

VLLM_BLOCK_TOKENS = 16
ENDLESS_TOKENS = 1 << 62  # longer than any history


@dataclass(frozen=True)
class Pool:
    """``capacity`` units, of which a request of a given length takes ``demand``."""

    capacity: int
    demand: Callable[[int], int]


@dataclass(frozen=True)
class Layout:
    """One way to lay a model's KV cache out. ``is_stock`` marks what SGLang 0.5.23 does today."""

    name: str
    pools: tuple[Pool, ...]
    note: str = ""
    is_stock: bool = False

    def concurrent(self, lengths: Sequence[int]) -> float:
        """Room for running requests, the ``lengths`` in equal numbers; not rounded down."""
        return min(
            max(0, pool.capacity - 1) * len(lengths) / total
            for pool in self.pools
            if (total := sum(pool.demand(n) for n in lengths)) > 0
        )


def compare(
    model: Model, geometry: Geometry, exact: tuple[GroupGeometry, ...], lengths: Sequence[int]
) -> list[Layout]:
    """Stock layouts first, then the paper's alternatives, ours (``geometry``) and the ideal."""
    pool_bytes = geometry.pool_bytes
    return [
        *stock_layouts(model, pool_bytes, lengths),
        large_pages_of("exact LCM (paper)", exact, pool_bytes, model.tail_tokens),
        max_page(model.specs, geometry.page_size, pool_bytes, model.tail_tokens),
        padded_blocks(model.specs, pool_bytes, model.tail_tokens),
        large_pages_of("planned (ours)", geometry.groups, pool_bytes, model.tail_tokens),
        ideal(model.specs, pool_bytes),
    ]


def stock_layouts(model: Model, pool_bytes: int, lengths: Sequence[int]) -> list[Layout]:
    """SGLang 0.5.23: every token in every layer, or fixed ratios for windows and states.

    The best ratios are those for the mix of ``lengths``. Pages of one token, so nothing is
    rounded; layers that share KV have rows of their own.
    """
    stock = _Stock(model, pool_bytes)
    has_window, has_states = stock.window > 0, stock.state_bytes > 0
    today = DEFAULT_STATE_RATIO if has_states else 0.0
    found: list[Layout] = []
    if has_window or not has_states:
        is_stock = not (has_window and model.stock.has_window_pool)
        found.append(Layout("SGLang, full KV", stock.pools(None, today), is_stock=is_stock))
    if has_window or has_states:
        best = (stock.best_window_ratio(lengths), stock.best_state_ratio(lengths))
        for name, window, state in (
            ("default", DEFAULT_WINDOW_RATIO, today),
            ("best", *best),
        ):
            pools = stock.pools(window if has_window else None, state)
            note = ", ".join(
                f"{kind} {ratio:.3g}"
                for kind, ratio, there in (
                    ("window", window, has_window),
                    ("states", state, has_states),
                )
                if there
            )
            is_stock = name == "default" and not any(layout.is_stock for layout in found)
            found.append(Layout(f"SGLang, {name} ratio", pools, note, is_stock))
    return found


class _Stock:
    """Sizes of SGLang's pools for one model."""

    def __init__(self, model: Model, pool_bytes: int) -> None:
        self.pool_bytes = pool_bytes
        self.tail_tokens = model.tail_tokens
        rows = [layer for layer in model.layers if not layer.state_bytes]
        windows = [layer for layer in rows if _span(layer) is not None]
        self.window = max((_span(layer) or 0 for layer in windows), default=0)
        self.window_bytes = sum(layer.k_bytes + layer.v_bytes for layer in windows)
        self.row_bytes = sum(layer.k_bytes + layer.v_bytes for layer in rows)
        self.state_bytes = sum(sum(layer.state_bytes) for layer in model.layers)

    def pools(self, window_ratio: float | None, state_ratio: float) -> tuple[Pool, ...]:
        """``window_ratio`` in window tokens per full token, ``state_ratio`` in bytes of states
        per byte of KV; None stores every token in window layers too."""
        kv_bytes = self.pool_bytes / (1 + state_ratio)
        pools: list[Pool] = []
        if self.state_bytes:
            states = int((self.pool_bytes - kv_bytes) // self.state_bytes)
            pools.append(Pool(states, lambda length: STATES_PER_REQUEST))
        if window_ratio is None:
            return (*pools, Pool(int(kv_bytes // self.row_bytes), self._tokens))
        token_bytes = self.row_bytes - self.window_bytes + window_ratio * self.window_bytes
        tokens = int(kv_bytes // token_bytes)
        if self.row_bytes > self.window_bytes:
            pools.append(Pool(tokens, self._tokens))
        pools.append(Pool(int(tokens * window_ratio), lambda n: self._tokens(min(n, self.window))))
        return tuple(pools)

    def _tokens(self, needed: int) -> int:
        """Tokens of a request with its drafts."""
        return needed + self.tail_tokens

    def best_window_ratio(self, lengths: Sequence[int]) -> float:
        if self.row_bytes == self.window_bytes:
            return 1.0  # no full layers: one pool of window tokens
        return sum(min(n, self.window) for n in lengths) / sum(lengths)

    def best_state_ratio(self, lengths: Sequence[int]) -> float:
        if not self.state_bytes:
            return 0.0
        window_tokens = sum(min(n, self.window) for n in lengths)
        full_bytes = (self.row_bytes - self.window_bytes) * sum(lengths)
        kv_bytes = full_bytes + self.window_bytes * window_tokens
        return len(lengths) * STATES_PER_REQUEST * self.state_bytes / max(1, kv_bytes)


def _span(layer: Layer) -> int | None:
    """The most tokens that a layer of KV ever needs; None where there is no such number."""
    tokens = layer.dependency.peak_tokens(ENDLESS_TOKENS)
    return tokens if tokens < ENDLESS_TOKENS else None


def large_pages_of(
    name: str, groups: tuple[GroupGeometry, ...], pool_bytes: int, tail_tokens: int = 0
) -> Layout:
    """Small pages in large pages, one of them reserved; no request shares one with another."""
    page_bytes = math.lcm(*(group.small_page_bytes for group in groups))
    pool = Pool(pool_bytes // page_bytes, lambda n: large_pages(groups, page_bytes, n, tail_tokens))
    return Layout(name, (pool,), f"large page {human_bytes(page_bytes)}")


def max_page(
    specs: tuple[LayerGroupSpec, ...], page_size: int, pool_bytes: int, tail_tokens: int = 0
) -> Layout:
    """One page size, that of the largest group; other groups put more tokens into a page
    (the alternative that the paper calls MAX)."""
    page_bytes = max(len(s.layers) * s.layer_page_bytes(page_size) for s in specs)
    tokens = [1 if s.is_state else page_bytes // s.bytes_per_token for s in specs]

    def demand(length: int) -> int:
        pairs = zip(specs, tokens, strict=True)
        return sum(_pages(s, length, n, tail_tokens) for s, n in pairs)

    most = max(n for s, n in zip(specs, tokens, strict=True) if not s.is_state)
    note = f"up to {most:,} tokens a page"
    return Layout("max page", (Pool(pool_bytes // page_bytes, demand),), note)


def padded_blocks(
    specs: tuple[LayerGroupSpec, ...], pool_bytes: int, tail_tokens: int = 0
) -> Layout:
    """vLLM's hybrid manager: one block size in bytes, groups of equally many layers.

    A block holds one layer's page of as many layers as the smallest group has (the largest, when
    that is less than half as large again); the last layers of a group are padded with absent
    ones. A smaller row gets more tokens a block where that divides, else padding; where there
    are states, attention gets as many tokens as fill one layer's state
    (vLLM, docs/design/hybrid_kv_cache_manager.md).
    """
    rows = [s.row_bytes for s in specs if not s.is_state]
    page_bytes = VLLM_BLOCK_TOKENS * max(rows)
    if largest_state := max(s.layer_state_bytes for s in specs):
        page_bytes *= -(-largest_state // page_bytes)
    tokens = [_block_tokens(s, page_bytes) for s in specs]
    counts = [len(s.layers) for s in specs]
    size = max(counts) if 2 * max(counts) < 3 * min(counts) else min(counts)

    def demand(length: int) -> int:
        return sum(
            -(-count // size) * _pages(s, length, n, tail_tokens)
            for s, n, count in zip(specs, tokens, counts, strict=True)
        )

    note = f"up to {max(tokens):,} tokens a block"
    return Layout("padded blocks (vLLM)", (Pool(pool_bytes // (size * page_bytes), demand),), note)


def _pages(spec: LayerGroupSpec, length: int, page_tokens: int, tail_tokens: int) -> int:
    """Pages of one request with its drafts."""
    tail = 0 if spec.is_state else -(-tail_tokens // page_tokens)
    return spec.dependency.peak_pages(length, page_tokens) + tail


def _block_tokens(spec: LayerGroupSpec, page_bytes: int) -> int:
    if spec.is_state:
        return 1
    own_bytes = VLLM_BLOCK_TOKENS * spec.row_bytes
    divides = page_bytes % own_bytes == 0
    return VLLM_BLOCK_TOKENS * (page_bytes // own_bytes) if divides else VLLM_BLOCK_TOKENS


def ideal(specs: tuple[LayerGroupSpec, ...], pool_bytes: int) -> Layout:
    """Nothing but the bytes that are needed, without any rounding."""
    pool = Pool(pool_bytes, lambda length: sum(ideal_bytes(s, length) for s in specs))
    return Layout("ideal", (pool,), "nothing rounded")
