"""Drives the scheduler over a trace in simulated time."""

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.replay.arrivals import Arrivals
from benchmarks.replay.drafts import Drafting
from benchmarks.replay.forward import (
    DraftingForward,
    ReplayError,
    TraceForward,
    require_no_early_output,
    unfinished_prompts,
)
from benchmarks.replay.held import PoolBytes
from benchmarks.replay.manager_time import ManagerClock
from benchmarks.replay.moved import DEVICE_WORK
from benchmarks.replay.oracle import TokenOracle
from benchmarks.replay.recorder import Recorder, Step, read_step
from benchmarks.replay.spec import COPY_BYTES_PER_S
from benchmarks.replay.trace import Request, TokenBook

# Passes without a batch, without a new arrival and with requests waiting: SGLang is stuck.
MAX_IDLE_PASSES = 200
# Every so many steps the bytes that are held and useful are sampled.
SAMPLE_STEPS = 16

Progress = Callable[[Recorder, float], None]


@dataclass(frozen=True)
class Launched:
    """A batch whose result SGLang has not looked at yet, with what was known at its launch."""

    batch: Any
    result: Any
    step: Step
    running: int
    seconds: float
    unfinished: list[tuple[Any, int]]


class ReplayLoop:
    """Feeds requests, steps the scheduler, advances the clock by the cost model.

    The scheduler decides everything. A step's results count at the step's end, and requests that
    are due by then are seen by the next step; with ``overlap`` by the one after that, for the
    next one is launched while the step runs.
    """

    def __init__(
        self,
        scheduler: Any,
        requests: list[Request],
        recorder: Recorder,
        pool_bytes: Callable[[Any], PoolBytes],
        manager: ManagerClock | None = None,
        *,
        overlap: bool = False,
        strict: bool = False,
        copy_bytes_per_s: float = COPY_BYTES_PER_S,
        drafting: Drafting | None = None,
        before_forward: Callable[[Any], None] = lambda batch: None,
    ) -> None:
        self.scheduler = scheduler
        self.recorder = recorder
        self.now = 0.0
        self._arrivals = Arrivals(requests)
        self._copied_seconds = 0.0
        self._book = TokenBook()
        self._drafting = drafting
        self._forward = TraceForward() if drafting is None else DraftingForward(drafting)
        self._pool_bytes = pool_bytes
        self._manager = manager
        self._before_forward = before_forward
        DEVICE_WORK.seconds_per_host_byte = recorder.geometry.shrink_factor / copy_bytes_per_s
        self._oracle = (
            TokenOracle(
                recorder.geometry,
                scheduler.req_to_token_pool.req_to_token,
                self._forward.outputs,
                drafting,
            )
            if strict
            else None
        )
        self._overlap = overlap
        self._launched: deque[Launched] = deque()
        if overlap:
            # As SGLang's event loop does: it looks into its queue of results as it makes batches.
            scheduler.enable_skip_finishing_decode = True
            scheduler.result_queue = deque()
        self._idle_passes = 0
        self._hook()

    def run(self, progress: Progress) -> None:
        """Replay the whole trace; raise `ReplayError` when SGLang misbehaves or gets stuck."""
        from sglang.srt.utils import DynamicGradMode

        with DynamicGradMode():
            while self._arrivals or self._forward.outputs:
                self._submit_due()
                self._pass(progress)
            # The scheduler drops its last finished requests at the start of the next pass.
            self._pass(progress)

    def _hook(self) -> None:
        """Put the trace in the model's place and watch for retractions and aborts."""
        scheduler = self.scheduler
        scheduler.model_worker.forward_batch_generation = self._forward
        requeue = scheduler._add_request_to_queue

        def add_request_to_queue(req: Any, is_retracted: bool = False) -> None:
            self.recorder.retractions += is_retracted
            requeue(req, is_retracted=is_retracted)

        def send_abort_output(abort_req: Any, req: Any) -> None:
            self._finish(req, aborted=True)

        scheduler._add_request_to_queue = add_request_to_queue
        scheduler.send_abort_output = send_abort_output

    def _submit_due(self) -> None:
        for release_time, request in self._arrivals.release(self.now):
            self.recorder.released(request, release_time)
            self._forward.outputs[request.id] = self._book.output(request)
            self.scheduler.handle_generate_request(_input(request, self._book))

    def _pass(self, progress: Progress) -> None:
        """Do one pass of SGLang's event loop."""
        scheduler = self.scheduler
        plan = scheduler.get_next_batch_to_run(
            running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
        )
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        scheduler.cur_batch_for_debug = batch
        if batch:
            self._launched.append(self._launch(batch))
        behind = bool(batch) and self._overlap
        if len(self._launched) > behind:
            self._account(self._launched.popleft())
            progress(self.recorder, self.now)
        elif not batch:
            self._idle()
        scheduler.last_batch = batch
        if self._oracle is not None:
            with self._untimed():
                scheduler.invariant_checker.self_check_during_busy()

    def _launch(self, batch: Any) -> Launched:
        """Run one batch."""
        self._idle_passes = 0
        step = read_step(batch)
        self.recorder.began(step, self.now)
        waiting = self._admitted_outside(batch)
        computes = self._seconds(step)
        DEVICE_WORK.computed_seconds += computes
        seconds = computes + self._copy_seconds()
        unfinished = unfinished_prompts(batch)
        if self.recorder.steps % SAMPLE_STEPS == 0:
            with self._untimed():
                pool = self._pool_bytes(self.scheduler)
            self.recorder.sample_bytes(pool, step, self.now, seconds, waiting)
        if self._oracle is not None:
            self._oracle.check(batch, step)
        self._before_forward(batch)
        result = self.scheduler.run_batch(batch)
        running = len(batch.reqs) + len(waiting)
        kept = batch
        if self._overlap:
            kept = batch.copy()
            self.scheduler.result_queue.append((kept, result))
        return Launched(kept, result, step, running, seconds, unfinished)

    def _account(self, launched: Launched) -> None:
        """Have SGLang look at a result, and account for the step."""
        if self._overlap:
            self.scheduler.result_queue.popleft()
        self.scheduler.process_batch_result(launched.batch, launched.result)
        self.now += launched.seconds
        require_no_early_output(launched.unfinished)
        self.recorder.step(launched.step, launched.running, launched.seconds)
        self._collect(launched.batch)

    def _seconds(self, step: Step) -> float:
        if self._drafting is not None:
            return self._drafting.step_seconds(step)
        geometry = self.recorder.geometry
        kv_bytes = geometry.kv_bytes_read(np.array(step.kv_lengths, dtype=np.int64))
        return geometry.cost.step_seconds(step.prefill_tokens, len(step.decodes), kv_bytes)

    def _copy_seconds(self) -> float:
        """How long the step waits for what was copied to and from the host since the last one."""
        before, self._copied_seconds = self._copied_seconds, DEVICE_WORK.copy_seconds
        return self._copied_seconds - before

    def _admitted_outside(self, batch: Any) -> dict[str, int]:
        """Return the KV length of requests that are admitted but not in this batch."""
        scheduler = self.scheduler
        reqs = [] if scheduler.running_batch is batch else list(scheduler.running_batch.reqs)
        if scheduler.chunked_req is not None:
            reqs.append(scheduler.chunked_req)
        inside = {req.rid for req in batch.reqs}
        return {req.rid: req.kv.kv_committed_len for req in reqs if req.rid not in inside}

    def _collect(self, batch: Any) -> None:
        """Note new output tokens and close finished requests."""
        for req in batch.reqs:
            if req.rid not in self._forward.outputs:
                continue
            self.recorder.output(req.rid, len(req.output_ids), self.now)
            if req.finished():
                self._finish(req, aborted=_is_abort(req))
        self.recorder.output_curve.append((self.now, self.recorder.output_tokens))

    def _finish(self, req: Any, *, aborted: bool) -> None:
        """Compare a finished request's output with the trace and release the turns behind it."""
        expected = self._forward.outputs.pop(req.rid)
        if not aborted and list(req.output_ids) != expected.tolist():
            raise ReplayError(
                f"request {req.rid} returned {len(req.output_ids)} tokens that are not the "
                f"{len(expected)} of the trace"
            )
        self.recorder.finished(req.rid, self.now, aborted=aborted)
        self._arrivals.finished(req.rid, self.now)

    def _idle(self) -> None:
        """Let SGLang do its idle checks, and go on to the next arrival."""
        self.scheduler._sched_idled = True
        with self._untimed():
            self.scheduler.on_idle()
        next_time = self._arrivals.next_time()
        if next_time is not None:
            self.now = max(self.now, next_time)
            return
        self._idle_passes += 1
        if self._forward.outputs and self._idle_passes > MAX_IDLE_PASSES:
            stuck = sorted(self._forward.outputs)[:4]
            raise ReplayError(f"{len(self._forward.outputs)} requests are stuck, first {stuck}")

    def _untimed(self) -> Any:
        return nullcontext() if self._manager is None else self._manager.paused()


def _is_abort(req: Any) -> bool:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    return isinstance(req.finished_reason, FINISH_ABORT)


def _input(request: Request, book: TokenBook) -> Any:
    """Return the message that the tokenizer process would send for a request."""
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    # Not `ignore_eos`: with it SGLang reserves every running request's whole remaining output,
    # and no request of a server is known to use all it may. The dummy model has no end token.
    sampling = SamplingParams(max_new_tokens=request.output_tokens, temperature=0.0)
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=request.id,
        input_text="",
        input_ids=book.prompt(request),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )
