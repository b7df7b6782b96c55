"""An engine that computes nothing but knows what every byte must be.

For every token it "computes", it writes a pattern into a `fake_buffer.Buffer`, in every layer of
every group, at the address that `core.cut.geometry` promises. Before every step it reads back all
that each group still needs. What the manager frees is overwritten with poison at once, so a page
that is freed too early, handed out twice or mixed up with another cannot go unnoticed."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import core_inspector as inside
import numpy as np
from fake_buffer import Buffer, Hashes, history_hashes
from numpy.typing import NDArray

from jenga_sglang.core.books.tree import Encoded, Node
from jenga_sglang.core.cut.geometry import Geometry, GroupGeometry
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.live_groups import register_group, retire_group
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running

Pick = Callable[[int, int], int]


@dataclass(eq=False)
class Job:
    """A request: ``prompt`` first, then ``to_generate`` tokens one by one."""

    namespace: Hashable
    prompt: list[int]
    to_generate: int
    tokens: list[int] = field(default_factory=list)
    hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    computed: int = 0
    running: Running | None = None

    def __post_init__(self) -> None:
        self.set_tokens(self.prompt)

    def set_tokens(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.hashes = history_hashes(self.namespace, tokens)

    @property
    def encoder_tokens(self) -> int:
        """How many of the first tokens an encoder made."""
        return self.namespace.tokens if isinstance(self.namespace, Encoded) else 0

    @property
    def is_done(self) -> bool:
        generated = len(self.tokens) - len(self.prompt)
        return self.computed == len(self.tokens) and generated == self.to_generate


class FakeEngine:
    """Schedules jobs at random on one manager: chunked prefill, decode, retraction, abort."""

    def __init__(self, manager: Manager, pick: Pick) -> None:
        self.manager = manager
        self.pick = pick
        self.page_size = manager.page_size
        self.buffer = Buffer(manager.geometry)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.counts: Counter[str] = Counter()
        self._held = self._held_pages()
        self._state_groups = inside.state_groups(manager)

    @property
    def geometry(self) -> Geometry:
        return self.manager.geometry

    def register(self, cut: GroupGeometry) -> int:
        """A group is born between two steps."""
        group = register_group(self.manager, cut)
        self.buffer.geometry = self.geometry
        self._held = self._held_pages()
        return group

    def retire(self, group: int) -> None:
        """A group goes between two steps; everything it held is poison at once."""
        retire_group(self.manager, group)
        self._poison_freed()

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def step(self) -> None:
        """One pass of the scheduler and one of the model."""
        self.launch()
        for job in list(self.running):
            self._after_step(job)
        self.counts["steps"] += 1

    def launch(self) -> list[tuple[Job, int]]:
        """Prepare a step, and have the model compute it: jobs, and to how many tokens."""
        self.manager.end_step()
        self._poison_freed()
        self._admit()
        self._before_step()
        batch = self._reserve()
        self.check_needed()
        for job, length in batch:
            self._extend(job, length)
        for job, length in batch:
            self._save(job, length)
        self._compute_rows(batch)
        for job, length in batch:
            self._compute(job, length)
        return batch

    def _before_step(self) -> None:
        """What a server knows of the step before when it prepares the next: all of it."""

    # -- scheduling ---------------------------------------------------------------------------

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.manager.max_requests and self.pick(0, 3):
            job = self.waiting.popleft()
            self._start(job)
            self.running.append(job)

    def _start(self, job: Job) -> None:
        tokens = np.array(job.tokens, np.int64)
        hit = self.manager.match(job.namespace, tokens[:-1])
        job.running = self.manager.lock(hit)
        job.computed = hit.path.num_pages * self.page_size
        self.counts["hit tokens"] += job.computed

    def _reserve(self) -> list[tuple[Job, int]]:
        """Choose how far each job goes in this step; retract the last ones until it fits."""
        while self.running:
            batch = [(job, self._next_length(job)) for job in self.running]
            demands = [(running_of(j), self.manager.new_pages(running_of(j), n)) for j, n in batch]
            fits = self.manager.reserve(demands, self._wanted(batch))
            self._poison_freed()
            if fits:
                return batch
            alone = len(self.running) == 1
            job = self.running[-1]
            self._leave(job, keep=bool(self.pick(0, 1)))
            self.counts["too large" if alone else "retracted"] += 1
            if not alone:
                self.waiting.append(job)
        return []

    def _wanted(self, batch: Sequence[tuple[Job, int]]) -> list[list[int] | None]:
        """Lengths of later hits of each job whose pages may pass in this step; often they may."""
        return [
            [self.pick(0, n) for _ in range(self.pick(0, 2))]
            if self._computes_rows(job) and self.pick(0, 3)
            else None
            for job, n in batch
        ]

    def _next_length(self, job: Job) -> int:
        """Chunked prefill: any part of what is left, often all of it."""
        left = len(job.tokens) - job.computed
        return job.computed + (left if self.pick(0, 1) else self.pick(0, left))

    def _after_step(self, job: Job) -> None:
        """What SGLang may do with a request after a step."""
        if job.is_done:
            self._leave(job, keep=True)
            self.counts["done"] += 1
        elif self.pick(0, 49) == 0:
            self._leave(job, keep=False)
            self.counts["aborted"] += 1
        else:
            if self.pick(0, 2) == 0:
                self._publish(job)
            elif self.pick(0, 1):
                self.manager.slide(running_of(job), job.computed)
                self._poison_freed()
            if job.computed == len(job.tokens):
                job.set_tokens([*job.tokens, self.pick(0, 1)])

    def _publish(self, job: Job, length: int | None = None) -> None:
        """Publish the first ``length`` tokens, or all that are computed."""
        tokens = np.array(job.tokens[: length or job.computed], np.int64)
        self.manager.publish(running_of(job), job.namespace, tokens)
        self._poison_freed()

    def _leave(self, job: Job, *, keep: bool) -> None:
        if keep:
            self._publish(job)
        self.manager.release(running_of(job))
        self._poison_freed()
        job.running, job.computed = None, 0
        self.running.remove(job)

    # -- the model ----------------------------------------------------------------------------

    def _extend(self, job: Job, length: int) -> None:
        self.manager.extend(running_of(job), length)
        self._held = self._held_pages()

    def _save(self, job: Job, length: int) -> None:
        """Making room for a snapshot frees pages and hands one out: what is freed and not
        handed out again is poison, and the new one may hold anything."""
        partings = range(self.page_size, length + 1, 4 * self.page_size)
        crowded = bool(self.pick(0, 1))
        self.manager.save_states(
            running_of(job), job.computed, length, len(job.prompt), partings, crowded=crowded
        )
        self._poison_freed()
        self.counts["snapshots"] += len(running_of(job).saves) // max(1, len(self._state_groups))

    def _compute_rows(self, batch: Sequence[tuple[Job, int]]) -> None:
        """Layer by layer, write the new tokens of all jobs, then read all that they attend to."""
        for group, cut in enumerate(self.geometry.groups):
            if cut.spec.is_state:
                continue
            steps = [(j, n) for j, n in batch if self._computes_rows(j)]
            steps = [(j, n) for j, n in steps if group in self._groups_of(j)]
            for stripe in range(cut.stripes):
                for job, length in steps:
                    self._write_rows(group, job, self._new_places(group, job, length), stripe)
                for job, length in steps:
                    self._read_rows(group, job, self._new_places(group, job, length), stripe)

    def _computes_rows(self, job: Job) -> bool:
        return True

    def _groups_of(self, job: Job) -> tuple[int, ...]:
        return running_of(job).groups + running_of(job).encoder_groups

    def _new_places(self, group: int, job: Job, length: int) -> NDArray[np.int64]:
        of_encoder = group in running_of(job).encoder_groups
        places = np.arange(job.computed, length)
        return places[(places < job.encoder_tokens) == of_encoder]

    def _write_rows(self, group: int, job: Job, places: NDArray[np.int64], stripe: int) -> None:
        small = inside.tables(self.manager)[group][running_of(job).row[places // self.page_size]]
        assert small.all(), "no page to write to"
        slots = (places % self.page_size).astype(np.int32)
        self.buffer.write(group, small, slots, job.hashes[places], range(stripe, stripe + 1))

    def _read_rows(self, group: int, job: Job, places: NDArray[np.int64], stripe: int) -> None:
        dependency = self.geometry.groups[group].spec.dependency.after_encoder(job.encoder_tokens)
        read = {t for place in places for r in dependency.visible(int(place)) for t in range(*r)}
        everything = np.array(sorted(read | set(places.tolist())), np.int64)
        row, stripes = running_of(job).row, range(stripe, stripe + 1)
        self._check_tokens(group, row, everything, job.hashes, stripes)
        small = inside.tables(self.manager)[group][row[places // self.page_size]]
        if small.shape[1] > 1:
            self.counts["passing tokens"] += int((small[:, 0] == small[:, 1]).sum())

    def _compute(self, job: Job, length: int) -> None:
        running = running_of(job)
        assert job.computed >= running.tree_pages * self.page_size, "would write into a shared page"
        self._compute_states(job, length)
        self.counts["computed tokens"] += length - job.computed
        job.computed = length

    def _compute_states(self, job: Job, length: int) -> None:
        """Move the working states on, from snapshot to snapshot."""
        running = running_of(job)
        for copy in running.take_starts():
            self.buffer.copy(copy.group, copy.source, copy.target)
        for group in self._state_groups:
            if job.computed <= job.encoder_tokens:
                self.buffer.check_zero(
                    group, inside.tables(self.manager)[group][running.state_page]
                )
            self._check_working_state(group, job)
        if length == job.computed:
            assert not running.take_saves()
            return
        for stop, copy in [*running.take_saves(), (length, None)]:
            assert job.computed < stop <= length
            for group in self._state_groups:
                self._write_working_state(group, job, stop)
            if copy:
                self.buffer.copy(copy.group, copy.source, copy.target)

    def _write_working_state(self, group: int, job: Job, length: int) -> None:
        small = inside.tables(self.manager)[group][running_of(job).state_page]
        assert small.all(), "no working state"
        if length <= job.encoder_tokens:
            return  # recurrent layers read the text alone
        self.buffer.write(group, small[None], np.zeros(1, np.int32), job.hashes[[length - 1]])

    def _check_working_state(self, group: int, job: Job) -> None:
        """The state after all computed tokens; a job that has not run yet finds it in the tree."""
        if job.computed <= job.encoder_tokens:
            return
        running = running_of(job)
        virtual = running.state_page or running.row[job.computed // self.page_size - 1]
        small = inside.tables(self.manager)[group][virtual]
        last = job.hashes[[job.computed - 1]]
        self.buffer.check(group, small[None], np.zeros(1, np.int32), last, f"state {job.computed}")

    def check_needed(self) -> None:
        """Read all that every running job still needs."""
        for job in self.running:
            for group in self._state_groups:
                self._check_working_state(group, job)
            for group in running_of(job).groups + running_of(job).encoder_groups:
                dependency = self.geometry.groups[group].spec.dependency
                ranges = dependency.after_encoder(job.encoder_tokens).needed(job.computed)
                places = [t for r in ranges for t in range(r.start, r.stop)]
                row = running_of(job).row
                self._check_tokens(group, row, np.array(places, np.int64), job.hashes)
        self.buffer.check_reserved()

    def check_cached(self) -> None:
        """Read every page of the tree, needed or not, in every group that holds it."""
        for namespace, root in inside.roots(self.manager).items():
            stack: list[tuple[Node, list[int]]] = [(root, [])]
            while stack:
                node, before = stack.pop()
                tokens = before + node.tokens.tolist()
                hashes = history_hashes(namespace, tokens)[len(before) :]
                for group, table in enumerate(inside.tables(self.manager)):
                    held = np.flatnonzero(table[node.pages, 0])
                    places = held[:, None] * self.page_size + np.arange(self.page_size)
                    if group in self._state_groups:
                        places = places[:, -1:]
                    self._check_tokens(group, node.pages, places.ravel(), hashes)
                stack += [(child, tokens) for child in node.children.values()]

    def _check_tokens(
        self,
        group: int,
        row: Ids,
        places: NDArray[np.int64],
        hashes: Hashes,
        stripes: range | None = None,
    ) -> None:
        if not len(places):
            return
        small = inside.tables(self.manager)[group][row[places // self.page_size]]
        slots = (places % self.page_size).astype(np.int32)
        what = f"tokens {places[0]} and on"
        self.buffer.check(group, small, slots, hashes[places], what, stripes)
        self.counts["checked tokens"] += len(places)

    # -- poison -------------------------------------------------------------------------------

    def _held_pages(self) -> list[NDArray[np.bool_]]:
        """For each group, which small pages its page table names."""
        held = []
        for group, table in enumerate(inside.tables(self.manager)):
            per_large = self.geometry.small_per_large(group)
            named = np.zeros((self.geometry.num_large_pages + 1) * per_large, np.bool_)
            named[table.ravel()] = True
            named[0] = False
            held.append(named)
        return held

    def _poison_freed(self) -> None:
        """Overwrite what the last operation freed. No operation both frees and hands out."""
        before, self._held = self._held, self._held_pages()
        for group, (was, now) in enumerate(zip(before, self._held, strict=True)):
            freed = np.flatnonzero(was & ~now)
            self.buffer.poison(group, freed)
            self.counts["freed pages"] += len(freed)


def running_of(job: Job) -> Running:
    assert job.running is not None
    return job.running
