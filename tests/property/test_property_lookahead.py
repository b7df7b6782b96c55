"""A lookahead that remembers finds what one that has just been made finds, whatever happens."""

import random
from collections.abc import Hashable

import core_inspector as inside
import numpy as np
from random_pools import random_pool
from world import World

from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.lookahead import Lookahead, Wanted

NUM_POOLS = 60
STEPS_PER_POOL = 60


def look(lookahead: Lookahead, world: World) -> tuple[list[Wanted], list[tuple[int, int]]]:
    """What is wanted when a part of every document and then all of it is asked for, and the large
    pages that were touched, with their places in the order in which."""
    queue: list[tuple[Hashable, Tokens]] = [
        (namespace, document[: len(document) // part])
        for namespace in world.namespaces
        for document in world.documents
        for part in (2, 1)
    ]
    before = inside.tick(world.manager)
    lookahead.look([str(n) for n in range(len(queue))], lambda index: queue[index])
    times = inside.times(world.manager)
    touched = np.flatnonzero(times > before).tolist()
    world.used_by_others(since=before)
    return lookahead.wanted, [(large, int(times[large]) - before) for large in touched]


def test_what_is_remembered_is_what_there_is() -> None:
    for seed in range(NUM_POOLS):
        generator = random.Random(seed)
        world = World(random_pool(generator.randint), generator.randint)
        remembers = Lookahead(world.manager)
        for step in range(STEPS_PER_POOL):
            memory = inside.memory(world.manager)
            getattr(world, rule := generator.choice(World.RULES))(generator.randint)
            if inside.memory(world.manager) is not memory:
                remembers.clear()
            found = look(remembers, world)
            assert found == look(Lookahead(world.manager), world), f"{seed=}, {step=}, {rule=}"
