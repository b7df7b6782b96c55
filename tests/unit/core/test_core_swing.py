"""Memory swings between groups with the load, and nothing is moved for it."""

from core_builders import make_manager
from fake_engine import FakeEngine, Job, pin_of

from jenga_sglang.core.dependency import Full, SlidingWindow

FULL, WINDOW = 0, 1
SHORT, LONG = 8, 1_600  # tokens
CHUNK = 64


class SteadyEngine(FakeEngine):
    """Aborts nothing, and sees to it that no page of a running request ever changes its place."""

    def __init__(self, num_large: int) -> None:
        # The window group has nine times the layers: at equal lengths, nine times the bytes.
        manager = make_manager(
            Full(),
            SlidingWindow(17),
            num_large=num_large,
            page_size=4,
            layers=[1, 9],
            stripes=[1, 9],
            max_requests=100,
            max_length=2000,
        )
        super().__init__(manager, lambda low, high: high)

    def step(self) -> None:
        before = [(job, pin_of(job).row.copy()) for job in self.running]
        places = [table.copy() for table in self.manager.memory.table]
        super().step()
        for job, row in before:
            if job in self.running:
                assert (pin_of(job).row[: len(row)] == row).all(), "a page was exchanged"
                for table, then in zip(self.manager.memory.table, places, strict=True):
                    now = table[row]
                    assert ((now == then[row]) | (now == 0)).all(), "a page was moved"
        self.manager.check()

    def _next_length(self, job: Job) -> int:
        return min(len(job.tokens), job.computed + CHUNK)

    def share(self, group: int) -> float:
        """The group's share of the bytes that running requests use."""
        cuts, used = self.geometry.groups, self.manager.memory.large.num_used
        all_bytes = [n * c.small_page_bytes for n, c in zip(used, cuts, strict=True)]
        return all_bytes[group] / max(1, sum(all_bytes))

    def serve(self, length: int, count: int, first_token: int) -> tuple[list[float], float]:
        """Serve ``count`` prompts to their end. The full group's share step by step while the pool
        was busiest, and how full it was then."""
        for number in range(count):
            self.submit(Job("", [first_token + number] * length, to_generate=8))
        seen: list[tuple[float, float]] = []
        while self.waiting or self.running:
            self.step()
            books = self.manager.memory.large
            seen.append((1 - books.num_free / books.num_large, self.share(FULL)))
            assert len(seen) < 5_000
        fullest = max(full for full, _ in seen)
        return [share for full, share in seen if full >= 0.95 * fullest and share], fullest


def test_memory_swings_from_one_group_to_the_other_and_back() -> None:
    """Of short histories both groups need everything, the window group in nine times the layers;
    of long ones the full group needs 400 pages, and the window group five in each layer."""
    engine = SteadyEngine(num_large=3000)
    done = 0
    shares = []
    for length, count, token in ((SHORT, 200, 1_000), (LONG, 12, 2_000), (SHORT, 200, 3_000)):
        phase, fullest = engine.serve(length, count, token)
        shares.append(phase)
        assert fullest > 0.8, fullest
        done += count
        assert engine.counts["done"] == done, "a request was lost"
    assert engine.counts["aborted"] == engine.counts["too large"] == 0
    assert max(shares[0]) < 0.11 and max(shares[2]) < 0.11
    assert max(shares[1]) > 0.89
    assert engine.counts["checked tokens"] > 100_000
