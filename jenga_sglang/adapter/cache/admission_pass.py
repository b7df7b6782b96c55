"""One admission pass after the other: what SGLang's interfaces do not pass on while a batch fills.

SGLang's scheduler walks its queue, locks the prefix of the request whose turn it is, and asks the
budget about token counts. Who waits, whose turn it is, and which prompt is being computed in chunks
stand here meanwhile, made by the hook around a pass and gone with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from jenga_sglang.adapter.cache.keys import Keys, single
from jenga_sglang.adapter.cache.namespace import history
from jenga_sglang.core.admission import Weighing, in_large_pages, step_pages
from jenga_sglang.core.books.tree import Path, Tokens
from jenga_sglang.core.ids import common_length
from jenga_sglang.core.lookahead import MAX_REQUESTS, Lookahead
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.running import Running
from jenga_sglang.core.whole import longest_step, shortest_step

if TYPE_CHECKING:
    from jenga_sglang.adapter.sglang_views import ReqView, SchedulerView

_REQUEST_ID = attrgetter("rid")

ASK_EVERY_PASSES = 16


@dataclass(frozen=True)
class Refusal:
    """Why a pass stopped admitting. ``cause`` is "memory" when a candidate did not fit, "chunk"
    when the next chunk of a prompt did not, and "cache" when a candidate fits but cached prefixes
    that others wait for are worth more. ``short`` is how much more room, in large pages, would have
    changed the answer."""

    weighing: Weighing
    cause: str
    short: float


class LoadRoom(Protocol):
    """What a load from the host must leave to others; `budget.JengaPrefillBudget` says it."""

    def beside_load(self, prefix: int) -> list[int]: ...

    def has_loaded(self) -> None: ...


@dataclass(eq=False)
class AdmissionPass:
    """What is known while a batch is filled, and what came of it."""

    # The scheduler's waiting queue.
    waiting: Sequence[ReqView] = ()
    # The prompt that is being computed in chunks.
    chunked: Running | None = None
    # Snapshots of states that it has yet to leave.
    chunked_snapshots: int = 0
    # Requests whose prompts a step that was launched before computes to their ends.
    in_flight: Sequence[ReqView] = ()
    # The request whose turn it is, from when SGLang asks for it on.
    offered: ReqView | None = None
    # Of requests that have waited for another to compute what they will hit: for whom.
    awaited: dict[str, str] = field(default_factory=dict)
    # Those that wait for that in this pass.
    held_back: set[str] = field(default_factory=set)
    # Whose prefix SGLang has locked to look at it; None for a question, which changes nothing.
    candidate: Running | None = None
    # Of the last pass that asked for room: with a full batch, SGLang does not ask.
    refusal: Refusal | None = None
    # A prefix with which the candidate did not even fit alone.
    hindering: Path | None = None
    load_room: LoadRoom | None = None
    # Tokens that requests of other batches may still decode: SGLang counts one batch.
    promised_elsewhere: float = 0


class Admission:
    """The passes of one scheduler. ``now`` is the current one, or the last."""

    def __init__(self, manager: Manager, keys: Keys = single) -> None:
        self.manager = manager
        self.lookahead = Lookahead(manager)
        self._keys = keys
        self.now = AdmissionPass()
        self._ask_again = AskAgain(manager)

    def reset(self) -> None:
        self.lookahead.clear()
        self.now = AdmissionPass()

    @contextmanager
    def passing(
        self, scheduler: SchedulerView, launched: Sequence[ReqView] = ()
    ) -> Iterator[AdmissionPass]:
        """Fill one batch, when the steps of requests ``launched`` before are under way or done:
        first let go of what would keep the next chunk of a prompt out, for nobody else may begin
        before it has gone on, or else of what hindered the last pass."""
        self.manager.end_step()
        last = self.now
        chunked = scheduler.chunked_req
        self.now = AdmissionPass(scheduler.waiting_queue, _locked_by(chunked), refusal=last.refusal)
        if last.awaited:
            still = {req.rid for req in scheduler.waiting_queue}
            self.now.awaited = {r: whom for r, whom in last.awaited.items() if r in still}
        self.now.promised_elsewhere = _promised_elsewhere(scheduler)
        self.now.in_flight = [req for req in launched if not req.output_ids]
        if chunked is not None:
            self.now.chunked_snapshots = self._snapshots_to_come(chunked, self.now.chunked)
        self._give_up(last.hindering)
        if chunked is not None:
            self._make_way(chunked, scheduler.chunked_prefill_size)
        try:
            yield self.now
        finally:
            # The scheduler has made a new list; until the next pass, who comes is in that.
            self.now.waiting = scheduler.waiting_queue
            self.now.candidate = self.now.load_room = None

    @contextmanager
    def asking(self, chunked: ReqView | None = None) -> Iterator[AdmissionPass]:
        """A pass that only asks: nothing is given up for it, and it leaves no trace."""
        decided = self.now
        self.now = AdmissionPass(decided.waiting, _locked_by(chunked))
        try:
            yield self.now
        finally:
            self.now = decided

    def is_due(self) -> bool:
        """Whether to ask for room in this pass, although a batch was full; once a pass."""
        waiting, refusal = self.now.waiting, self.now.refusal
        head = waiting[0].rid if waiting else None
        kept_out = refusal is not None and refusal.cause == "cache"
        running = len(self.manager.running)
        self.lookahead.guard.begin_pass(head, kept_out=kept_out, num_running=running)
        return self._ask_again.is_due(head, refusal)

    def look_ahead(self) -> None:
        """Find and protect what waiting requests will hit."""
        waiting = self.now.waiting
        if waiting and self.lookahead.has_looked(waiting[0].rid):
            return

        def read(index: int) -> tuple[Hashable, Tokens]:
            req = waiting[index]
            tokens = req.origin_input_ids
            if req.output_ids:
                tokens = tokens + req.output_ids
            known = np.frombuffer(tokens, np.int64)
            return history(req, req), self._keys(known, len(known) - 1)

        self.lookahead.look(list(map(_REQUEST_ID, waiting[:MAX_REQUESTS])), read)

    def partings(self, req: ReqView, start: int) -> list[int]:
        """Where requests that wait part from the prompt of ``req``: lengths above ``start``."""
        own, whose = req.origin_input_ids, history(req, req)
        tokens = np.frombuffer(own, np.int64)
        lengths = set()
        for other in self.now.waiting[:MAX_REQUESTS]:
            theirs = other.origin_input_ids
            # One token tells most of them apart.
            if start >= len(theirs) or theirs[start] != own[start]:
                continue
            if history(other, other) == whose:
                lengths.add(common_length(tokens, np.frombuffer(theirs, np.int64)[:-1]))
        return sorted(n for n in lengths if n > start)

    def snapshots_to_come(self) -> int:
        """Snapshots of states that the candidate is to leave."""
        return self._snapshots_to_come(self.now.offered, self.now.candidate)

    def _snapshots_to_come(self, req: ReqView | None, running: Running | None) -> int:
        if req is None or running is None or not self.manager.memory.state_groups:
            return 0
        prompt = len(req.origin_input_ids)
        # One that had answered before it was retracted may hit more than its prompt.
        partings = self.partings(req, running.length) if running.length < prompt else []
        return self.manager.snapshots_to_come(running, prompt, partings)

    def awaits(self, req: ReqView, admitted: Sequence[ReqView]) -> bool:
        """Whether ``req``, whose turn it is, should wait for what another computes that is
        ``admitted`` before it in this pass, or in flight: it hits that when it is done. It waits
        for one other in its life, so the wait ends when that has computed its prompt."""
        least = self.manager.policy.awaited_tokens
        if not least or not self.manager.prefix_cache or req.positional_embed_overrides is not None:
            return False
        tokens = np.frombuffer(req.origin_input_ids, np.int64)
        tokens = tokens[: req._compute_max_prefix_len(len(req.full_untruncated_fill_ids))]
        hit = req.prefix_len + req.host_hit_length
        last = hit + least - 1
        if last >= len(tokens):
            return False
        whom, whose = self.now.awaited.get(req.rid), history(req, req)
        for other in (*admitted, *self.now.in_flight):
            theirs = other.origin_input_ids
            # One token tells most of them apart.
            if last >= len(theirs) or theirs[last] != tokens[last]:
                continue
            if whom not in (None, other.rid) or history(other, other) != whose:
                continue
            shared = common_length(tokens, np.frombuffer(theirs, np.int64))
            if shared > last:
                if whom is None:
                    self.now.awaited[req.rid] = other.rid
                    self.manager.counters.awaited_tokens += shared - hit
                self.now.held_back.add(req.rid)
                return True
        return False

    def _make_way(self, chunked: ReqView, chunk_tokens: int) -> None:
        if (running := self.now.chunked) is None:
            return
        # A prompt that is not put into the tree has not been slid yet.
        self.manager.slide(running, running.length)
        left = len(chunked.full_untruncated_fill_ids) - running.length
        step = min(left, next_chunk(running, left, chunk_tokens))
        # As a reservation would, it gives up what is held for others where that is in the way.
        pages = self.manager.new_pages(running, running.length + step)
        self.manager.make_way(pages, passes=True)

    def _give_up(self, hindering: Path | None) -> None:
        """Evict the prefix altogether, or its request would be merged with it as it is computed.
        While others run, it may fit when they have left."""
        manager = self.manager
        if hindering and not manager.running and manager.tree.is_alive(hindering.node):
            manager.give_up(hindering)


def _promised_elsewhere(scheduler: SchedulerView) -> float:
    """What requests of batches that take turns with this one, in stages of a pipeline, may still
    decode: estimated as SGLang does for the running batch."""
    batches = [*getattr(scheduler, "running_mbs", ()), *getattr(scheduler, "mbs", ())]
    own = (scheduler.running_batch, scheduler.last_batch) if batches else ()
    others = {
        req.rid: req
        for batch in batches
        if batch is not None and not any(batch is one for one in own)
        for req in batch.reqs
    }
    ratio = scheduler.new_token_ratio_tracker.current if others else 0.0
    return sum(
        min(req.sampling_params.max_new_tokens - len(req.output_ids), CLIP_MAX_NEW_TOKENS)
        * (1.0 if req.sampling_params.ignore_eos else ratio)
        for req in others.values()
    )


def next_chunk(running: Running, left: int, most: int) -> int:
    """Tokens that the next step may compute of a prompt of which ``left`` are to come: ``most``, or
    as many as end before an image that they would cut, or with one that is longer."""
    start, whole = running.length, running.hit.whole
    page_size = running.history.needs.page_size
    step = longest_step(start, most, start + left, whole, page_size)
    return step or shortest_step(start, start + left, whole, page_size)


def _locked_by(req: ReqView | None) -> Running | None:
    if req is None or req.lock is None:
        return None
    running: Running = req.lock.receipt
    return running


class AskAgain:
    """When to ask for admission again after a refusal.

    SGLang asks when a request has left. Windows slide before that and make room, so we ask as
    well when there is as much more as was missing: free and cached pages, and what running
    requests have used of the room that was promised to them, at most a token each in a pass. What
    that leaves out (a new guess of their lengths) waits for ``ASK_EVERY_PASSES``. So does a request
    that fits and was not worth what would be evicted for it: that changes with who runs.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._head: str | None = None
        self._refusal: Refusal | None = None
        self._passes = self._available = 0

    def is_due(self, head: str | None, refusal: Refusal | None) -> bool:
        """Once a pass: the request that waits first, and what the last pass that asked refused."""
        if refusal is None:
            return True
        manager = self._manager
        available = manager.memory.large.available
        if refusal is not self._refusal:
            # The pass before ended with it, and has let go of the refused request's hit since.
            self._refusal, self._head, self._passes = refusal, head, 0
            self._available = available
            return False
        self._passes += 1
        if head != self._head or self._passes % ASK_EVERY_PASSES == 0:
            return True
        if refusal.cause == "cache":
            return False
        token = sum(in_large_pages(manager, step_pages(manager, 1))) / manager.page_size
        gained = available - self._available + self._passes * len(manager.running) * token
        return gained >= refusal.short
