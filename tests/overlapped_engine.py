"""The fake engine in the order of an overlapped server: a step's result is looked at when the next
step has been launched, so that requests go on from tokens that nobody has seen yet."""

from fake_engine import FakeEngine, Job, Pick, running_of

from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running


class OverlappedEngine(FakeEngine):
    """A request may compute one token too many, and is retracted before its result is known."""

    def __init__(self, manager: Manager, pick: Pick) -> None:
        super().__init__(manager, pick)
        self._launched: list[tuple[Job, Running, int]] = []

    def step(self) -> None:
        batch = self.launch()
        results, self._launched = self._launched, [(j, running_of(j), n) for j, n in batch]
        for job, running, length in results:
            if job.running is running:
                self._look_at(job, length)
        self.counts["steps"] += 1

    def _before_step(self) -> None:
        for job in self.running:
            self._guess(job)

    def _guess(self, job: Job) -> None:
        """The token that the step in flight will make is the next one to compute."""
        most = min(len(job.prompt) + job.to_generate + 1, self.manager.max_length)
        if job.computed < len(job.tokens) or len(job.tokens) >= most:
            return
        if job.computed % self.page_size == 0:
            self.manager.slide(running_of(job), job.computed)
            self._poison_freed()
        job.set_tokens([*job.tokens, self.pick(0, 1)])

    def _extend(self, job: Job, length: int) -> None:
        running = running_of(job)
        decodes = running.touched and job.computed >= len(job.prompt) and length == job.computed + 1
        if not decodes:
            super()._extend(job, length)
            return
        if self.manager.new_pages(running, length):
            self.manager.extend_each([running])
        running.grow_within_pages(length)
        self._held = self._held_pages()

    def _look_at(self, job: Job, length: int) -> None:
        """A result of ``length`` computed tokens; the next step may have computed more."""
        if length >= len(job.prompt) + job.to_generate:
            self._leave(job, keep=True)
            self.counts["done"] += 1
        elif self.pick(0, 49) == 0:
            self._leave(job, keep=False)
            self.counts["aborted"] += 1
        elif length <= len(job.prompt):
            self._publish(job, length)
