"""Pools of every shape, made from small random choices.

``Pick`` draws an integer between two bounds: Hypothesis and a seeded generator can both be one,
so the same rules run under both.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from jenga_sglang.core.books.tree import Encoded
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import (
    ChunkedLocal,
    CrossAttention,
    DecoderTokens,
    Dependency,
    EncoderTokens,
    Full,
    LastState,
    SlidingWindow,
)
from jenga_sglang.core.experimental import Switches
from jenga_sglang.core.policy import CachePolicy

Pick = Callable[[int, int], int]
T = TypeVar("T")

MAX_PAGES = 24  # of one request


def choose(pick: Pick, options: Sequence[T]) -> T:
    return options[pick(0, len(options) - 1)]


@dataclass(frozen=True)
class Pool:
    geometry: Geometry
    max_length: int
    max_requests: int
    prefix_cache: bool
    policy: CachePolicy
    # What an encoder made of some requests, in pages, where a group reads it.
    encoder_pages: tuple[int, ...] = ()

    def encoded(self) -> tuple[Encoded, ...]:
        """Namespaces of histories that begin with what an encoder made."""
        return tuple(Encoded(None, n * self.geometry.page_size) for n in self.encoder_pages)

    def __str__(self) -> str:
        groups = ", ".join(
            f"{g.spec.dependency} x {len(g.spec.layers)} layers in {g.stripes} stripes"
            for g in self.geometry.groups
        )
        sizes = [self.geometry.small_per_large(g) for g in range(len(self.geometry.groups))]
        return (
            f"page size {self.geometry.page_size}, {groups}, small pages to a large page {sizes}, "
            f"{self.geometry.num_large_pages} large pages, cache {self.prefix_cache}, "
            f"{self.policy}, encoder {self.encoder_pages}"
        )


def random_pool(pick: Pick) -> Pool:
    """One to three groups; half of the pools have small pages of one size, and a quarter one more
    group that reads what an encoder made."""
    page_size = choose(pick, (1, 4, 16))
    alike = bool(pick(0, 1))
    groups: list[GroupGeometry] = []
    has_encoder = pick(0, 3) == 0
    num_groups = pick(1, 3) + has_encoder
    for number in range(num_groups):
        reads_encoder = has_encoder and number == num_groups - 1
        stripes = pick(1, 4)
        layers = stripes * (1 if alike else pick(1, 3))
        first = sum(len(g.spec.layers) for g in groups)
        if not alike and not reads_encoder and pick(0, 2) == 0:
            groups.append(random_states(pick, f"group{number}", first, stripes, page_size))
            continue
        k_bytes, v_bytes = (4, 4) if alike else (4 * pick(1, 2), 4 * pick(0, 2))
        spec = LayerGroupSpec(
            name=f"group{number}",
            layers=tuple(range(first, first + layers)),
            dependency=CrossAttention() if reads_encoder else random_dependency(pick, page_size),
            k_bytes=k_bytes,
            v_bytes=v_bytes,
        )
        padding_bytes = 0 if alike else page_size * choose(pick, (0, 0, 4))
        groups.append(GroupGeometry(spec, page_size, stripes, padding_bytes))
    large_page_bytes = math.lcm(*(g.small_page_bytes for g in groups))
    pages = pick(4, 60)  # of all groups together
    num_large = -(-pages * sum(g.page_bytes for g in groups) // large_page_bytes)
    pool_bytes = (num_large + 1) * large_page_bytes + pick(0, 1) * (large_page_bytes - 1)
    return Pool(
        geometry=Geometry(tuple(groups), page_size, pool_bytes),
        max_length=MAX_PAGES * page_size,
        max_requests=pick(2, 6),
        prefix_cache=pick(0, 9) > 0,
        policy=CachePolicy(
            keep_branches=bool(pick(0, 1)),
            hold_hits=bool(pick(0, 1)),
            waiting_prefixes=bool(pick(0, 1)),
            state_share_percent=pick(0, 2) * 50,
            prompt_slack_tokens=pick(0, 2) * page_size,
            answer_state_tokens=pick(0, 2) * page_size,
            passing_pages=bool(pick(0, 7)),
            request_aware=bool(pick(0, 3)),
            whole_large_pages=bool(pick(0, 3)),
            balanced=bool(pick(0, 3)),
            aligned=bool(pick(0, 3)),
        ),
        encoder_pages=(pick(1, 3), pick(1, MAX_PAGES // 2)) if has_encoder else (),
    )


def shared_pool(pick: Pick) -> Pool:
    """Pages of several requests in every large page, and hardly any that only falls with others:
    eviction is all about which large page goes."""
    page_size, num_groups = choose(pick, (1, 4)), pick(1, 2)
    # A group of many layers, that pages of the others are small beside a large page.
    layers, groups = [*(pick(1, 2) for _ in range(num_groups)), 12], []
    for number, count in enumerate(layers):
        first = sum(layers[:number])
        dependency = SlidingWindow(pick(2, 6) * page_size)
        ids = tuple(range(first, first + count))
        spec = LayerGroupSpec(f"group{number}", ids, dependency, k_bytes=4, v_bytes=4)
        groups.append(GroupGeometry(spec, page_size, 1))
    large_page_bytes = math.lcm(*(g.small_page_bytes for g in groups))
    return Pool(
        geometry=Geometry(tuple(groups), page_size, pick(40, 90) * large_page_bytes),
        max_length=MAX_PAGES * page_size,
        max_requests=6,
        prefix_cache=True,
        policy=CachePolicy(request_aware=False),
    )


def random_states(
    pick: Pick, name: str, first_layer: int, stripes: int, page_size: int
) -> GroupGeometry:
    """Recurrent layers whose state has one or two parts."""
    layers = stripes * pick(1, 2)
    spec = LayerGroupSpec(
        name=name,
        layers=tuple(range(first_layer, first_layer + layers)),
        dependency=LastState(),
        state_bytes=tuple(4 * pick(1, 12) for _ in range(pick(1, 2))),
    )
    return GroupGeometry(spec, page_size, stripes, 16 * pick(0, 1))


def random_dependency(pick: Pick, page_size: int) -> Dependency:
    size = pick(1, 6 * page_size)
    return choose(
        pick,
        (
            Full(),
            Full(),
            SlidingWindow(size),
            SlidingWindow(size),
            SlidingWindow(size, pick(1, 3 * page_size)),
            ChunkedLocal(size),
            LastState(),
            EncoderTokens(size),
            DecoderTokens(size),
            Switches(pick(0, 8 * page_size), Full(), SlidingWindow(size)),
        ),
    )
