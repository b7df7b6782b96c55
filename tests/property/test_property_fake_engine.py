"""Random serving with a fake engine that checks every byte it will still read.

The short tests draw the same cases every time, the long ones others. Set ``JENGA_SEED`` to run one
seed again.
"""

import os
import random
from collections import Counter
from collections.abc import Hashable, Sequence

import core_inspector as inside
import numpy as np
import pytest
from core_builders import UNIT_BYTES, make_manager
from drafting_engine import DraftingEngine
from fake_engine import FakeEngine, Job, running_of
from overlapped_engine import OverlappedEngine
from random_pools import Pick, choose, random_pool

from jenga_sglang.core.cut.geometry import GroupGeometry, LayerGroupSpec
from jenga_sglang.core.dependency import ChunkedLocal, Full, SlidingWindow
from jenga_sglang.core.manager import Manager

NAMESPACES = ("", "", "salt")
JOBS_PER_POOL = 25


def random_jobs(
    pick: Pick, max_length: int, namespaces: Sequence[Hashable] = NAMESPACES
) -> list[Job]:
    """Prompts that begin like one of three documents, so that many share and fork."""
    documents = [[0] * max_length]
    for number in (1, 2):
        same = pick(0, max_length // 2)
        documents.append([0] * same + [number] * (max_length - same))
    jobs = []
    for _ in range(JOBS_PER_POOL):
        prompt = choose(pick, documents)[: pick(1, max_length - 1)]
        if pick(0, 1):
            kept = pick(0, len(prompt) - 1)
            prompt = prompt[:kept] + [50 + pick(0, 3)] * (len(prompt) - kept)
        to_generate = pick(0, min(12, max_length - len(prompt)))
        jobs.append(Job(choose(pick, namespaces), prompt, to_generate))
    return jobs


def serve(engine: FakeEngine, jobs: list[Job], max_steps: int = 2_000) -> None:
    """Run until nothing waits or runs, with everything in the cache read now and then."""
    for job in jobs:
        engine.submit(job)
    for step in range(max_steps):
        if not engine.waiting and not engine.running:
            return
        engine.step()
        if step % 5 == 0:
            engine.check_cached()
            engine.manager.check()
    raise AssertionError(f"{len(engine.waiting)} jobs wait, {len(engine.running)} run")


def run(seed: int, kind: type[FakeEngine]) -> Counter[str]:
    generator = random.Random(seed)
    pool = random_pool(generator.randint)
    manager = Manager(
        pool.geometry,
        max_requests=pool.max_requests,
        max_length=pool.max_length,
        prefix_cache=pool.prefix_cache,
    )
    engine = kind(manager, generator.randint)
    try:
        namespaces = (*NAMESPACES, *pool.encoded())
        serve(engine, random_jobs(generator.randint, pool.max_length, namespaces))
    except Exception as error:
        error.add_note(f"JENGA_SEED={seed}, step {engine.counts['steps']}; {pool}")
        raise
    assert inside.num_used(manager) == [0] * len(pool.geometry.groups)
    return engine.counts


def seeds(count: int, first: int | None = None) -> range:
    """``count`` seeds from ``first`` on, or from anywhere; the one that is given, if one is."""
    if given := os.environ.get("JENGA_SEED"):
        return range(int(given), int(given) + 1)
    if first is None:
        first = random.SystemRandom().randrange(1 << 30)
    return range(first, first + count)


def run_seeds(chosen: range, kind: type[FakeEngine]) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in chosen:
        total += run(seed, kind)
    print(f"JENGA_SEED={chosen.start} and on: {dict(total)}")
    return total


ENGINES = pytest.mark.parametrize("kind", [FakeEngine, OverlappedEngine, DraftingEngine])


@ENGINES
def test_everything_still_needed_is_readable_at_every_step(kind: type[FakeEngine]) -> None:
    counts = run_seeds(seeds(15, first=0), kind)
    if kind is DraftingEngine:
        assert 0 < counts["accepted drafts"] < counts["drafts"]


@ENGINES
@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_everything_still_needed_is_readable_over_many_thousand_steps(
    kind: type[FakeEngine],
) -> None:
    run_seeds(seeds(int(os.environ.get("JENGA_POOLS", 2_000))), kind)


@ENGINES
@pytest.mark.parametrize("seed", seeds(4, first=0))
def test_groups_come_and_go_under_load(seed: int, kind: type[FakeEngine]) -> None:
    run_with_live_groups(seed, kind)


@ENGINES
@pytest.mark.long
def test_groups_come_and_go_under_load_many_times(kind: type[FakeEngine]) -> None:
    for seed in seeds(200):
        run_with_live_groups(seed, kind)


def run_with_live_groups(seed: int, kind: type[FakeEngine]) -> None:
    """Every byte that a running request needs stays readable, whichever groups are born or retired
    beside it, and in the end everything is free."""
    print(f"JENGA_SEED={seed}")
    generator = random.Random(seed)
    born = retired = 0
    for _ in range(4):
        manager = make_manager(
            Full(),
            SlidingWindow(9),
            num_large=150,
            page_size=4,
            layers=[2, 3],
            stripes=[2, 3],
            max_length=64,
        )
        engine = kind(manager, generator.randint)
        for job in random_jobs(generator.randint, 64):
            engine.submit(job)
        while engine.waiting or engine.running:
            engine.step()
            if generator.random() < 0.15 and len(inside.row_groups(manager)) < 5:
                engine.register(random_cut(generator, len(manager.dependencies)))
                born += 1
            used = {g for running in manager.running.values() for g in running.groups}
            free = [g for g in inside.row_groups(manager) if g not in used]
            if free and len(inside.row_groups(manager)) > 1:
                engine.retire(generator.choice(free))
                retired += 1
            engine.check_cached()
            manager.check()
            assert engine.counts["steps"] < 2_000
        for group in list(inside.row_groups(manager)):
            engine.retire(group)
        manager.check_idle()
        assert inside.num_free(manager) == inside.num_large(manager)
        assert inside.num_free_ids(manager) == inside.num_ids(manager)
    assert born > 10 and retired > 5


def random_cut(generator: random.Random, number: int) -> GroupGeometry:
    """A new group of one to four layers of the unit size, each a stripe."""
    layers = tuple(range(100 * number, 100 * number + generator.randint(1, 4)))
    dependency = generator.choice([Full(), SlidingWindow(7), ChunkedLocal(10)])
    spec = LayerGroupSpec(f"born{number}", layers, dependency, UNIT_BYTES // 2, UNIT_BYTES // 2)
    return GroupGeometry(spec, 4, len(layers))


# -- the engine itself ---------------------------------------------------------------------------


def small_engine(manager: Manager) -> FakeEngine:
    return FakeEngine(manager, random.Random(0).randint)


def start_one(engine: FakeEngine, length: int) -> Job:
    """One job that has computed its whole prompt and runs on."""
    engine.pick = lambda low, high: high
    job = Job("", list(range(length)), to_generate=9)
    engine.submit(job)
    engine.step()
    assert engine.running == [job] and job.computed == length
    return job


def test_the_engine_notices_a_byte_that_another_wrote() -> None:
    manager = make_manager(Full(), SlidingWindow(4), num_large=40)
    engine = small_engine(manager)
    job = start_one(engine, 8)
    size = manager.geometry.groups[1].small_page_bytes
    engine.buffer.bytes[(inside.tables(manager)[1][running_of(job).row[6], 0] + 1) * size - 1] ^= 1
    with pytest.raises(AssertionError, match=r"group 1, .* slot 0, .*\(1, 1\): overwritten"):
        engine.check_needed()


def test_the_engine_does_not_mind_what_nobody_needs() -> None:
    """A window of 4 needs tokens 5, 6 and 7. Token 4 is in the same page."""
    manager = make_manager(SlidingWindow(4), num_large=40, page_size=4)
    engine = small_engine(manager)
    job = start_one(engine, 8)
    first = inside.tables(manager)[0][running_of(job).row[1], 0]
    start = first * manager.geometry.groups[0].small_page_bytes
    engine.buffer.bytes[start : start + 4] ^= 1
    engine.check_needed()
    engine.buffer.bytes[start + 4] ^= 1
    with pytest.raises(AssertionError, match="slot 1"):
        engine.check_needed()


def test_the_engine_notices_a_page_table_that_names_another_page() -> None:
    manager = make_manager(Full(), num_large=40, page_size=4)
    engine = small_engine(manager)
    row = running_of(start_one(engine, 16)).row
    table = inside.tables(manager)[0]
    table[row[[0, 1]]] = table[row[[1, 0]]]
    with pytest.raises(AssertionError, match="overwritten"):
        engine.check_needed()


def test_the_engine_notices_a_page_that_was_freed_too_early() -> None:
    """The manager takes the window for one token shorter than the layers do."""
    manager = make_manager(SlidingWindow(5), num_large=40)
    manager.dependencies[0] = SlidingWindow(4)
    manager.prefix_cache = False
    engine = small_engine(manager)
    job = start_one(engine, 8)
    manager.slide(running_of(job), 8)
    engine._poison_freed()
    with pytest.raises(AssertionError, match="group 0"):
        engine.check_needed()


def test_the_engine_notices_a_write_to_the_reserved_page() -> None:
    manager = make_manager(Full(), num_large=4)
    engine = small_engine(manager)
    engine.buffer.bytes[0] = 1
    with pytest.raises(AssertionError, match="reserved"):
        engine.check_needed()


def test_the_engine_notices_a_cached_page_with_the_tokens_of_another() -> None:
    manager = make_manager(Full(), num_large=40)
    engine = small_engine(manager)
    serve(engine, [Job("", [1, 2, 3, 4], 0)])
    engine.check_cached()
    pages = inside.path_pages(manager, inside.find(manager, "", np.array([1, 2, 3, 4])))
    table = inside.tables(manager)[0]
    table[pages[[1, 2]]] = table[pages[[2, 1]]]
    with pytest.raises(AssertionError, match="overwritten"):
        engine.check_cached()
