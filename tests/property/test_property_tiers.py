"""Two tiers against page tables read page by page, and every byte of both.

Set ``JENGA_SEED`` to run one seed again.
"""

import random
from collections import Counter

import core_inspector as inside
import pytest
from random_pools import choose, random_pool
from test_property_fake_engine import NAMESPACES, random_jobs, seeds, serve
from tiered_engine import TieredEngine

from jenga_sglang.core.cut.geometry import Geometry
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import WritePolicy


def run(
    seed: int, write_policy: WritePolicy, kind: type[TieredEngine] = TieredEngine
) -> Counter[str]:
    generator = random.Random(seed)
    pool = random_pool(generator.randint)
    manager = TieredManager(
        pool.geometry,
        host_bytes=_host_bytes(pool.geometry, generator),
        write_policy=write_policy,
        max_requests=pool.max_requests,
        max_length=pool.max_length,
        prefix_cache=pool.prefix_cache,
        policy=pool.policy,
    )
    engine = kind(manager, generator.randint)
    try:
        namespaces = (*NAMESPACES, *pool.encoded())
        serve(engine, random_jobs(generator.randint, pool.max_length, namespaces))
        engine.finish()
        engine.check_cached()
        manager.check_idle()
    except Exception as error:
        error.add_note(f"JENGA_SEED={seed}, step {engine.counts['steps']}; {pool}")
        raise
    assert inside.num_used(manager) == [0] * len(pool.geometry.groups)
    return engine.counts


def _host_bytes(geometry: Geometry, generator: random.Random) -> int:
    """From one large page to four times the pool."""
    most = 4 * geometry.num_large_pages
    large_pages = choose(
        generator.randint, (1, geometry.num_large_pages, generator.randint(1, most))
    )
    return (large_pages + 1) * geometry.large_page_bytes


def run_seeds(chosen: range, write_policy: WritePolicy) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in chosen:
        total += run(seed, write_policy)
    print(f"JENGA_SEED={chosen.start} and on: {dict(total)}")
    return total


@pytest.mark.parametrize("write_policy", WritePolicy)
def test_hits_loads_and_bytes_of_two_tiers_are_what_the_tables_say(
    write_policy: WritePolicy,
) -> None:
    counts = run_seeds(seeds(12, first=0), write_policy)
    for happened in ("loads", "declined loads", "written pages", "checked tokens of the host"):
        assert counts[happened], f"no {happened}"


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("write_policy", WritePolicy)
def test_hits_loads_and_bytes_of_two_tiers_over_many_pools(write_policy: WritePolicy) -> None:
    run_seeds(seeds(1_000), write_policy)
