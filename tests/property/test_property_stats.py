"""The numbers that users see are those of a recount: page by page, from the page tables alone."""

import random
from collections import Counter

import core_inspector as inside
import numpy as np
import pytest
from random_pools import random_pool
from world import World

from jenga_sglang.core.admission import weigh
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.stats import MAP_LEVELS, large_page_map, pool_stats

STEPS = 60


def small_pages(manager: Manager, group: int) -> list[tuple[int, bool]]:
    """(large page, used) of every small page that the group holds."""
    rows, stripes = np.nonzero(inside.tables(manager)[group])
    small = inside.tables(manager)[group][rows, stripes]
    used = inside.pin_counts(manager)[group][rows] > 0
    per_large = manager.geometry.small_per_large(group)
    return [(int(s) // per_large, bool(u)) for s, u in zip(small, used, strict=True)]


def check_bytes(manager: Manager) -> None:
    stats = pool_stats(manager)
    total = stats["free_bytes"] + stats["unusable_bytes"]
    for g, group in enumerate(stats["groups"]):
        held = small_pages(manager, g)
        size = group["small_page_bytes"]
        assert group["used_bytes"] == size * sum(used for _, used in held)
        assert group["cached_bytes"] == size * sum(not used for _, used in held)
        assert group["large_pages"] == len({large for large, _ in held})
        assert 0 <= group["waste_bytes"] <= group["used_bytes"] + group["cached_bytes"]
        total += group["used_bytes"] + group["cached_bytes"] + group["free_bytes"]
    assert total == stats["pool_bytes"]


def check_map(manager: Manager) -> None:
    cells = np.frombuffer(large_page_map(manager.memories[0].large), np.uint8).reshape(-1, 2)
    assert len(cells) == manager.geometry.num_large_pages
    expected = np.zeros_like(cells)
    for g in range(len(manager.geometry.groups)):
        per_large = manager.geometry.small_per_large(g)
        counts = Counter(small_pages(manager, g))
        for large in {large for large, _ in counts}:
            shares = [
                max(1, MAP_LEVELS * n // per_large) if n else 0
                for n in (counts[large, True], counts[large, False])
            ]
            expected[large - 1] = g + 1, shares[0] << 4 | shares[1]
    assert (cells == expected).all()


def check_weighing(manager: Manager, generator: random.Random) -> None:
    groups = range(len(manager.geometry.groups))
    promised, pages = ([generator.randint(0, 12) for _ in groups] for _ in range(2))
    both = [a + b for a, b in zip(promised, pages, strict=True)]
    weighing = weigh(manager, promised, pages)
    assert (weighing.missing == 0) == manager.can_serve(both)
    assert all(count >= 0 for count in weighing.asked)


@pytest.mark.parametrize("seed", range(25))
def test_stats_map_and_weighing_agree_with_a_recount_after_every_step(seed: int) -> None:
    generator = random.Random(seed)
    world = World(random_pool(generator.randint), generator.randint)
    for _ in range(STEPS):
        getattr(world, generator.choice(World.RULES))(generator.randint)
        check_bytes(world.manager)
        check_map(world.manager)
        check_weighing(world.manager, generator)
