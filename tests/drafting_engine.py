"""The fake engine with drafts: a step writes more tokens of a request than it keeps."""

import core_inspector as inside
import numpy as np
from fake_buffer import history_hashes
from fake_engine import FakeEngine, Job, Pick, running_of

from jenga_sglang.core.manager import Manager

MOST_DRAFTS = 40  # more than a page, and more than most windows


class DraftingEngine(FakeEngine):
    """Requests that have computed their prompts verify a random number of drafts at once. What is
    accepted of them is committed at once or, as in an overlapped server, with the next step."""

    def __init__(self, manager: Manager, pick: Pick) -> None:
        super().__init__(manager, pick)
        self._stops: dict[Job, int] = {}

    def _drafts(self, job: Job) -> bool:
        """Whether the next token of ``job``, of text, is known, and all before it computed."""
        if job.computed < job.encoder_tokens:
            return False
        known = len(job.prompt) <= job.computed == len(job.tokens) - 1
        return known and running_of(job).touched and not self._state_groups

    def _next_length(self, job: Job) -> int:
        self._stops.pop(job, None)
        if not self._drafts(job):
            return super()._next_length(job)
        self._stops[job] = job.computed + self.pick(1, MOST_DRAFTS)
        return self._stops[job]

    def _computes_rows(self, job: Job) -> bool:
        return job not in self._stops  # `_write` does that

    def _extend(self, job: Job, length: int) -> None:
        if job not in self._stops:
            super()._extend(job, length)
            return
        self.manager.extend_tail(running_of(job), length)
        self._held = self._held_pages()

    def _save(self, job: Job, length: int) -> None:
        if job not in self._stops:
            super()._save(job, length)

    def _compute(self, job: Job, length: int) -> None:
        if job not in self._stops:
            super()._compute(job, length)
            return
        self._commit(job)  # of the step before
        self._poison_freed()
        known = list(job.tokens)
        drafts = [self.pick(0, 1) for _ in range(length - len(known))]
        self._write(job, [*known, *drafts])
        left = len(job.prompt) + job.to_generate - len(known)
        accepted = self.pick(0, min(len(drafts), left))
        job.set_tokens([*known, *drafts[:accepted]])
        job.computed = len(job.tokens)
        self.counts["drafts"] += len(drafts)
        self.counts["accepted drafts"] += accepted
        if self.pick(0, 1):
            self._commit(job)
            self._poison_freed()

    def _write(self, job: Job, tokens: list[int]) -> None:
        """All that a step computes, drafts and all."""
        row, places = running_of(job).row, np.arange(job.computed, len(tokens))
        hashes = history_hashes(job.namespace, tokens)[places]
        for group in running_of(job).groups:
            small = inside.tables(self.manager)[group][row[places // self.page_size]]
            assert small.all(), "no page to write to"
            slots = (places % self.page_size).astype(np.int32)
            self.buffer.write(group, small, slots, hashes)

    def _commit(self, job: Job) -> None:
        if job.computed > running_of(job).length:
            self.manager.commit(running_of(job), job.computed)

    def _publish(self, job: Job, length: int | None = None) -> None:
        if job.computed > running_of(job).length:
            self._commit(job)
            self._poison_freed()
        super()._publish(job, length)
