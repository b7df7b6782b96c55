"""The order of eviction where pages of several requests share large pages."""

import random

import pytest
from random_pools import shared_pool
from world import World

STEPS_PER_POOL = 60
RULES = (*World.RULES, "start", "grow", "finish", *["evict"] * 3)


@pytest.mark.parametrize("seed", range(8))
def test_the_large_page_that_was_used_last_or_serves_the_shortest_prefix_stays(seed: int) -> None:
    generator = random.Random(seed)
    world = World(shared_pool(generator.randint), generator.randint)
    assert not world.exact_order
    for step in range(STEPS_PER_POOL):
        rule = generator.choice(RULES)
        try:
            getattr(world, rule)(generator.randint)
            world.check()
        except Exception as error:
            error.add_note(f"{seed=}, step {step}, rule {rule}; {world.pool}")
            raise
