"""Random steps by a seeded generator: many more than Hypothesis would take.

The short test draws the same cases every time, the long one others. Set ``JENGA_SEED`` to run one
seed again and ``JENGA_STEPS`` for another number of steps.
"""

import os
import random

import pytest
from random_pools import random_pool
from world import World

STEPS_PER_POOL = 100


def run(seed: int, steps: int) -> None:
    """Random rules on one random pool, everything compared after each."""
    generator = random.Random(seed)
    pool = random_pool(generator.randint)
    world = World(pool, generator.randint)
    for step in range(steps):
        rule = generator.choice(World.RULES)
        try:
            getattr(world, rule)(generator.randint)
            world.check()
        except Exception as error:
            error.add_note(f"JENGA_SEED={seed}, step {step}, rule {rule}; {pool}")
            raise


def run_pools(num_steps: int, first_seed: int) -> None:
    seed = int(os.environ.get("JENGA_SEED", first_seed))
    num_pools = 1 if "JENGA_SEED" in os.environ else -(-num_steps // STEPS_PER_POOL)
    print(f"JENGA_SEED={seed} … {seed + num_pools - 1}")
    for number in range(num_pools):
        run(seed + number, STEPS_PER_POOL)


def test_two_thousand_random_steps() -> None:
    run_pools(2_000, first_seed=0)


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_a_hundred_thousand_random_steps() -> None:
    anywhere = random.SystemRandom().randrange(1 << 30)
    run_pools(int(os.environ.get("JENGA_STEPS", 100_000)), anywhere)
