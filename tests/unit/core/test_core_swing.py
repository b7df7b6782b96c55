"""Memory swings between groups with the load, and nothing is moved for it."""

from dataclasses import dataclass

import core_inspector as inside
import pytest
from core_builders import make_manager
from fake_engine import FakeEngine, Job, running_of

from jenga_sglang.core.dependency import Full, SlidingWindow

FULL, WINDOW = 0, 1
SHORT = 8  # tokens


@dataclass(frozen=True)
class Load:
    """A pool, and how many short and long prompts fill it. The window group has ``layers`` times
    the layers of the full group, so at equal lengths so many times the bytes."""

    num_large: int
    layers: int
    chunk: int  # tokens
    num_short: int
    num_long: int
    long: int  # tokens
    share_of_long: float  # the least that the full group comes to


class SteadyEngine(FakeEngine):
    """Aborts nothing, and sees to it that no page of a running request ever changes its place."""

    def __init__(self, load: Load) -> None:
        manager = make_manager(
            Full(),
            SlidingWindow(17),
            num_large=load.num_large,
            page_size=4,
            layers=[1, load.layers],
            stripes=[1, load.layers],
            max_requests=100,
            max_length=2000,
        )
        super().__init__(manager, lambda low, high: high)
        self.chunk = load.chunk

    def step(self) -> None:
        before = [(job, running_of(job).row.copy()) for job in self.running]
        places = [table.copy() for table in inside.tables(self.manager)]
        super().step()
        for job, row in before:
            if job in self.running:
                assert (running_of(job).row[: len(row)] == row).all(), "a page was exchanged"
                for table, then in zip(inside.tables(self.manager), places, strict=True):
                    now = table[row]
                    assert ((now == then[row]) | (now == 0)).all(), "a page was moved"
        self.manager.check()

    def _next_length(self, job: Job) -> int:
        return min(len(job.tokens), job.computed + self.chunk)

    def share(self, group: int) -> float:
        """The group's share of the bytes that running requests use."""
        cuts, used = self.geometry.groups, inside.num_used(self.manager)
        all_bytes = [n * c.small_page_bytes for n, c in zip(used, cuts, strict=True)]
        return all_bytes[group] / max(1, sum(all_bytes))

    def serve(self, length: int, count: int, first_token: int) -> tuple[list[float], list[float]]:
        """Serve ``count`` prompts to their end. The full group's share of what is used, step by
        step, and the most of the pool that running requests used in each group."""
        for number in range(count):
            self.submit(Job("", [first_token + number] * length, to_generate=8))
        shares, most = [], [0.0, 0.0]
        while self.waiting or self.running:
            self.step()
            assert inside.small_per_large(self.manager) == [1, 1]
            used = [n / inside.num_large(self.manager) for n in inside.num_used(self.manager)]
            most = [max(pair) for pair in zip(most, used, strict=True)]
            shares.append(self.share(FULL))
            assert len(shares) < 5_000
        return [share for share in shares if share], most


@pytest.mark.parametrize(
    "load",
    [
        Load(300, 4, 16, num_short=30, num_long=5, long=400, share_of_long=0.78),
        pytest.param(
            Load(3000, 9, 64, num_short=200, num_long=12, long=1600, share_of_long=0.89),
            marks=pytest.mark.long,
        ),
    ],
)
def test_memory_swings_from_one_group_to_the_other_and_back(load: Load) -> None:
    """Of short histories both groups need everything; of long ones the full group needs every page,
    and the window group five in each layer."""
    engine = SteadyEngine(load)
    done = 0
    shares = []
    for length, count, token in (
        (SHORT, load.num_short, 1_000),
        (load.long, load.num_long, 2_000),
        (SHORT, load.num_short, 3_000),
    ):
        phase, most = engine.serve(length, count, token)
        shares.append(phase)
        mostly = WINDOW if length == SHORT else FULL
        assert most[mostly] > 0.7, "memory that only the other group can have"
        done += count
        assert engine.counts["done"] == done, "a request was lost"
    assert engine.counts["aborted"] == engine.counts["too large"] == 0
    for short in (shares[0], shares[2]):
        assert max(short) < 1.1 / (1 + load.layers)
    assert max(shares[1]) > load.share_of_long
    assert engine.counts["checked tokens"] > 30 * load.num_large
