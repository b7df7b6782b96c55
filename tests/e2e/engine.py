"""Real SGLang schedulers, each in a forked process of its own, without HTTP or detokenizer.

The fork server imports SGLang once. Everything from the tokenized request to the output token is
what a server runs: its event loop with overlap, the model, the pools, the leak checks.
"""

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from e2e import images
from e2e.answers import Answer
from e2e.queues import is_in
from e2e.stream import Request

# What every scheduler imports sooner or later.
PRELOADED = (
    "transformers",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    "sglang.srt.dllm.algorithm",
    "sglang.srt.distributed.device_communicators.custom_all_reduce",
    "jenga_sglang.adapter.hooks",
    "jenga_sglang.adapter.observe.report",
    "smg_grpc_servicer.sglang.zmq_plugin",
)
# Every scheduler of these tests, served or not, stock or not.
ENVIRONMENT = {
    # Leak checks after every step and when idle; a leak ends the process.
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
    # Admission takes every output for a short one: it admits too many, and must retract.
    "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "2",
    "OMP_NUM_THREADS": "1",
    # Operators as they are written: compiling a few of them takes seconds in every process.
    "TORCHDYNAMO_DISABLE": "1",
}


PAUSE_SECONDS = 0.001
FIRST_ROOM = 1000  # where the two servers of a request meet; 0 is none


@dataclass(frozen=True)
class Job:
    """A stream for one scheduler. ``flags`` are fields of SGLang's `ServerArgs`; ``prepare`` runs
    in the process before anything is built, ``before`` once its pools exist, ``after`` when all is
    done; its answer is in the report. SGLang mixes prompts and decodes in a batch only where nobody
    asks for ``logprobs``. With ``bootstrap_ports`` prompts are computed by one server and answered
    by another, which meet there, in turn; ``rooms`` tells requests apart, by default their
    numbers. ``aborts`` are requests, by number, that are aborted so many passes of the event loop
    after they came, ``aborts_in`` as soon as they are in a queue of this name (`e2e.queues`). With
    ``last_alone`` the last request comes when all others have got their answers."""

    flags: dict[str, Any]
    requests: Sequence[Request]
    concurrency: int = 30
    env: dict[str, str] = field(default_factory=dict)
    before: Callable[[Any], None] | None = None
    prepare: Callable[[], None] | None = None
    after: Callable[[Any], Any] | None = None
    logprobs: bool = True
    # What to ask for instead of tokens: "embedding", or the logprobs of these tokens.
    asks: str | list[int] | None = None
    bootstrap_ports: Sequence[int] = ()
    rooms: Sequence[int] = ()
    aborts: Mapping[int, int] = field(default_factory=dict)
    aborts_in: Mapping[int, str] = field(default_factory=dict)
    last_alone: bool = False


@dataclass(frozen=True)
class Report:
    """Answers in the order of the requests; ``state`` is what /server_info says of the
    Jenga pool when all is done, and nothing for stock; ``batches`` ran in each forward mode."""

    answers: list[Answer]
    state: dict[str, Any]
    batches: Counter[str]
    after: Any = None

    @property
    def retractions(self) -> int:
        return sum(answer.retractions for answer in self.answers)

    @property
    def cached_tokens(self) -> int:
        return sum(answer.cached_tokens for answer in self.answers)


class RunningJob:
    """A job at work in a process of its own."""

    def __init__(self, job: Job, log_path: Path) -> None:
        context = fork_context()
        self._log_path = log_path
        self.results, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_child, args=(job, log_path, sender), daemon=True)
        self._process.start()
        sender.close()

    def stop(self) -> None:
        """End the process if it still runs."""
        self._process.kill()

    def signal(self) -> int:
        """Wait for the end, and say which signal ended the process; 0 for none."""
        self._process.join()
        return max(0, -(self._process.exitcode or 0))

    def result(self) -> Report:
        """Wait for the end; fail with what went wrong and the end of the log."""
        try:
            report = self.results.recv()
        except EOFError:
            report = "the process died"
        self._process.join()
        if isinstance(report, Report):
            return report
        raise AssertionError(f"{report}\n{self._log_path.read_text(errors='replace')[-4000:]}")


def run_jobs(
    jobs: Mapping[str, Job], log_dir: Path, *, killed: Collection[str] = ()
) -> dict[str, Report]:
    """Run named jobs side by side; when one fails, the others are ended. Those that are to be
    ``killed`` must end so, and have no report."""
    running = {name: RunningJob(job, log_dir / name) for name, job in jobs.items()}
    reports: dict[str, Report] = {}
    try:
        # Whoever ends first says first what went wrong: others may wait for it.
        while waiting := [n for n in running if n not in reports and n not in killed]:
            ready = connection.wait([running[name].results for name in waiting])
            for name in waiting:
                if running[name].results in ready:
                    reports[name] = running[name].result()
        for name in killed:
            assert running[name].signal() == signal.SIGKILL, f"{name} was not killed"
        return {name: reports[name] for name in jobs if name not in killed}
    finally:
        for job in running.values():
            job.stop()


def fork_context() -> Any:
    """Processes of it are forked from one that has imported SGLang, with the environment that it
    reads meanwhile."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with mock.patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    return context


def _child(job: Job, log_path: Path, sender: Connection) -> None:
    """Run the job with its output in a file, and send a `Report` or a traceback."""
    gc.freeze()  # what the fork server imported is nobody's garbage, and takes long to go through
    with log_path.open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        sender.send(run(job))
    except BaseException:
        sender.send(traceback.format_exc())
    sender.close()
    # Not through the interpreter's shutdown: SGLang's threads would be waited for.
    os._exit(0)


def run(job: Job) -> Report:
    """Build the scheduler, feed it the stream and return when it is idle again."""
    os.environ.update(job.env)
    if os.environ.get("TRITON_INTERPRET") == "1":
        import quick_interpreter  # noqa: F401
    from sglang.srt.plugins import load_plugins

    load_plugins()
    if job.prepare is not None:
        job.prepare()
    scheduler, feed = _build(job)
    if job.before is not None:
        job.before(scheduler)
    _stop_when_idle(scheduler, feed)
    batches = _count_batches(scheduler)
    scheduler.run_event_loop()
    after = job.after(scheduler) if job.after else None
    return Report(feed.answers(), _jenga_state(scheduler), batches, after)


def _jenga_state(scheduler: Any) -> dict[str, Any]:
    from jenga_sglang.adapter.kv_pool import JengaKVPool
    from jenga_sglang.adapter.observe.report import describe

    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    return describe(pool) if isinstance(pool, JengaKVPool) else {}


def _build(job: Job) -> tuple[Any, "Feed"]:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers import scheduler as module
    from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
    from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
    from sglang.srt.server_args import PortArgs
    from sglang.srt.utils import configure_logger

    feed = Feed(job)

    def channels(**kwargs: Any) -> SchedulerIpcChannels:
        return SchedulerIpcChannels(
            recv_from_tokenizer=feed,
            recv_from_rpc=NothingToReceive(),
            send_to_tokenizer=SenderWrapper(feed),
            send_to_detokenizer=SenderWrapper(feed),
            send_metrics_from_scheduler=None,
        )

    # As `sgl.Engine` builds its arguments.
    server_args = Engine.server_args_class(skip_tokenizer_init=True, log_level="info", **job.flags)
    ports = PortArgs.init_new(server_args)
    configure_logger(server_args)
    ranks = module.SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
    module.publish(server_args, role="scheduler", ranks=ranks)
    SchedulerIpcChannels.create = channels
    module.Scheduler.init_idle_sleeper = lambda self: setattr(self, "idle_sleeper", None)
    feed.scheduler = module.Scheduler(server_args, ports)
    return feed.scheduler, feed


def _count_batches(scheduler: Any) -> Counter[str]:
    batches: Counter[str] = Counter()
    run_batch = scheduler.run_batch

    def count_and_run(batch: Any, *rest: Any) -> Any:
        batches[batch.forward_mode.name] += 1
        return run_batch(batch, *rest)

    scheduler.run_batch = count_and_run
    return batches


def _stop_when_idle(scheduler: Any, feed: "Feed") -> None:
    """End the event loop after the idle checks that follow the last answer. One that waits for
    another server leaves it the processor meanwhile."""
    on_idle = scheduler.on_idle

    def check_and_stop() -> None:
        on_idle()
        if feed.waits_for_another:
            time.sleep(PAUSE_SECONDS)
        if feed.is_done() and scheduler.is_fully_idle():
            scheduler.gracefully_exit = True

    scheduler.on_idle = check_and_stop


class NothingToReceive:
    """A socket without messages."""

    def recv_pyobj(self, flags: int = 0) -> Any:
        import zmq

        raise zmq.Again


class Feed:
    """Both ends of the scheduler's sockets: a fixed number of requests are always in flight."""

    def __init__(self, job: Job) -> None:
        self._waiting = deque(enumerate(job.requests))
        self._room = job.concurrency
        self._logprobs = job.logprobs
        self._asks = job.asks
        self._bootstrap_ports = job.bootstrap_ports
        self.waits_for_another = bool(job.bootstrap_ports)
        self._rooms = job.rooms
        self._aborts = dict(job.aborts)
        self._aborts_in = dict(job.aborts_in)
        self._last_alone = job.last_alone
        self.scheduler: Any = None
        self._passes_left: dict[int, int] = {}
        self._partial = [_Partial() for _ in job.requests]

    def is_done(self) -> bool:
        return all(partial.finish_reason for partial in self._partial)

    def answers(self) -> list[Answer]:
        return [partial.answer() for partial in self._partial]

    def recv_pyobj(self, flags: int = 0) -> Any:
        """The next tokenized request, as the tokenizer process would send it."""
        import zmq

        for number, queue in self._aborts_in.items():
            if is_in(self.scheduler, queue, str(number)):
                del self._aborts_in[number]
                return _abort(number)
        if not self._waiting or not self._room or self._is_early():
            for number in self._passes_left:
                self._passes_left[number] -= 1
                if self._passes_left[number] < 0:
                    del self._passes_left[number]
                    return _abort(number)
            raise zmq.Again
        self._room -= 1
        number, request = self._waiting.popleft()
        if number in self._aborts:
            self._passes_left[number] = self._aborts[number]
        if self._asks == "embedding":
            return embedded(number, request)
        if self._asks:
            return scored(number, request, self._asks)
        message = tokenized(number, request, logprobs=self._logprobs)
        if ports := self._bootstrap_ports:
            message.bootstrap_host = "127.0.0.1"
            message.bootstrap_port = ports[number % len(ports)]
            message.bootstrap_room = FIRST_ROOM + (self._rooms or range(number + 1))[number]
        return message

    def _is_early(self) -> bool:
        """Whether the next request must wait until all others have got their answers."""
        unanswered = sum(not partial.finish_reason for partial in self._partial)
        return self._last_alone and len(self._waiting) == 1 and unanswered > 1

    def send_pyobj(self, output: Any, flags: int = 0, protocol: int = -1) -> None:
        """Take what goes to the detokenizer, and to the tokenizer what it says of aborts."""
        from sglang.srt.managers.io_struct import (
            AbortReq,
            BatchEmbeddingOutput,
            BatchTokenIDOutput,
        )

        if isinstance(output, AbortReq):
            self._finish(int(output.rid), "abort")
        if isinstance(output, BatchEmbeddingOutput | BatchTokenIDOutput):
            for index, number in enumerate(map(int, output.rids)):
                partial = self._partial[number]
                if self._asks:
                    partial.pool(output, index)
                else:
                    partial.add(output, index, logprobs=self._logprobs)
                if reason := output.finished_reasons[index]:
                    self._finish(number, reason["type"])

    def _finish(self, number: int, reason: str) -> None:
        self._room += not self._partial[number].finish_reason
        self._partial[number].finish_reason = reason


def _abort(number: int) -> Any:
    from sglang.srt.managers.io_struct import AbortReq

    return AbortReq(rid=str(number))


class _Partial:
    """An answer as it arrives, in one message or several."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.likeliest: list[list[tuple[float, int]]] = []
        self.pooled: list[float] = []
        self.finish_reason = ""
        self.counts = (0, 0)
        self.accepted: tuple[int, ...] = ()

    def add(self, output: Any, index: int, *, logprobs: bool) -> None:
        self.tokens += output.output_ids[index]
        if logprobs:
            self._add_logprobs(output, index)
        self._end(output, index)

    def pool(self, output: Any, index: int) -> None:
        """Take an embedding, or the logprobs of labels; both come at once."""
        if hasattr(output, "embeddings"):
            found = output.embeddings[index]
            self.pooled = list(found) if isinstance(found, list) else [found]
        else:
            (self.pooled,) = output.output_token_ids_logprobs_val[index]
        self._end(output, index)

    def _end(self, output: Any, index: int) -> None:
        reason = output.finished_reasons[index]
        if reason is not None:
            self.counts = (output.cached_tokens[index], output.retraction_counts[index])
            drafts = getattr(output, "spec_correct_drafts_histogram", None)  # none of an embedding
            self.accepted = tuple(drafts[index]) if drafts else ()

    def _add_logprobs(self, output: Any, index: int) -> None:
        self.logprobs += output.output_token_logprobs_val[index]
        values, ids = output.output_top_logprobs_val[index], output.output_top_logprobs_idx[index]
        self.likeliest += [list(zip(v, i, strict=True)) for v, i in zip(values, ids, strict=True)]

    def answer(self) -> Answer:
        facts = (*self.counts, self.finish_reason, self.accepted, self.pooled)
        return Answer(self.tokens, self.logprobs, self.likeliest, *facts)


def tokenized(number: int, request: Request, *, logprobs: bool = True) -> Any:
    """The message that the tokenizer process sends for a greedy request."""
    from array import array

    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    sampling = SamplingParams(
        max_new_tokens=request.max_new_tokens,
        temperature=0.0,
        ignore_eos=request.ignore_eos,
        stop_token_ids=list(request.stop_tokens) or None,
    )
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=str(number),
        input_text="",
        input_ids=array("q", request.prompt),
        input_embeds=None,
        mm_inputs=images.multimodal_inputs(request),
        token_type_ids=None,
        sampling_params=sampling,
        return_logprob=logprobs,
        logprob_start_len=-1,
        top_logprobs_num=2 if logprobs else 0,
        token_ids_logprob=None,
        stream=False,
        extra_key=request.namespace,
    )


def embedded(number: int, request: Request) -> Any:
    """The message for a request of `/v1/embeddings`, a reward or a class."""
    from array import array

    from sglang.srt.managers.io_struct import TokenizedEmbeddingReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    sampling = SamplingParams(max_new_tokens=0)
    sampling.normalize(None)
    return TokenizedEmbeddingReqInput(
        rid=str(number),
        input_text="",
        input_ids=array("q", request.prompt),
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling,
    )


def scored(number: int, request: Request, labels: str | list[int]) -> Any:
    """The message for an item of `/v1/score`: no token, but the logprobs of ``labels``."""
    message = tokenized(number, request)
    message.sampling_params.max_new_tokens = 0
    message.token_ids_logprob = labels
    return message
