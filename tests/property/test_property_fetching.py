"""Storage below two tiers: what is fetched, what of it is kept, and every byte of that.

Set ``JENGA_SEED`` to run one seed again.
"""

from collections import Counter

import pytest
from stored_engine import StoredEngine
from test_property_fake_engine import seeds
from test_property_tiers import run

from jenga_sglang.core.tiers import WritePolicy


def run_seeds(chosen: range) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in chosen:
        policies = list(WritePolicy)
        total += run(seed, policies[seed % len(policies)], StoredEngine)
    print(f"JENGA_SEED={chosen.start} and on: {dict(total)}")
    return total


def test_what_is_fetched_is_what_a_hit_lacks_and_says_what_it_should() -> None:
    counts = run_seeds(seeds(24, first=0))
    for happened in (
        *("fetched pages", "shorter fetches", "shorter fetches begun"),
        *("fetches without room", "loads"),
    ):
        assert counts[happened], f"no {happened}"


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_fetches_over_many_pools() -> None:
    run_seeds(seeds(1_000))
