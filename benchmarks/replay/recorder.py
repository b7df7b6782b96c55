"""Collects what happens during a replay. Nothing here influences the scheduler."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.replay.geometry import Geometry
from benchmarks.replay.held import PoolBytes
from benchmarks.replay.prefixes import useful_bytes
from benchmarks.replay.trace import Request


@dataclass
class RequestLog:
    """One request's history. Times are simulated seconds, the rest is tokens."""

    request: Request
    release_time: float
    begin_time: float | None = None  # of the step with the first chunk; the wait ends there
    first_token_time: float | None = None
    finish_time: float | None = None
    hit_tokens: int | None = None
    # Positions [0, computed) have had their KV computed (or found) at least once.
    computed_tokens: int = 0
    output_tokens: int = 0
    aborted: bool = False


@dataclass(frozen=True)
class Step:
    """What one batch computes, read off the batch before it runs."""

    # (request id, first position, end position) of each prompt chunk.
    chunks: list[tuple[str, int, int]]
    # (request id, KV length after the step) of each decoding request.
    decodes: list[tuple[str, int]]

    @property
    def prefill_tokens(self) -> int:
        return sum(end - start for _, start, end in self.chunks)

    @property
    def kv_lengths(self) -> list[int]:
        """Return the KV length after the step of every request in it."""
        return [end for _, _, end in self.chunks] + [length for _, length in self.decodes]


def read_step(batch: Any) -> Step:
    """Split a batch into prompt chunks and decoding requests."""
    lengths = [int(length) for length in batch.seq_lens_cpu.tolist()]
    rows = list(zip(batch.reqs, lengths, strict=True))
    if not batch.forward_mode.is_extend():
        return Step([], [(req.rid, length) for req, length in rows])
    # A mixed batch lists its decoding requests last.
    first_decode = len(rows) - len(batch.decoding_reqs or ())
    chunks = [
        (req.rid, length - extend, length)
        for (req, length), extend in zip(rows[:first_decode], batch.extend_lens, strict=False)
    ]
    return Step(chunks, [(req.rid, length) for req, length in rows[first_decode:]])


@dataclass
class Recorder:
    """Sums over steps; integrals are over simulated time."""

    geometry: Geometry
    logs: dict[str, RequestLog] = field(default_factory=dict)
    # (end of step in seconds, output tokens so far)
    output_curve: list[tuple[float, int]] = field(default_factory=list)
    finish_times: list[float] = field(default_factory=list)
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    output_tokens: int = 0
    recomputed_tokens: int = 0
    retractions: int = 0
    busy_seconds: float = 0.0
    running_seconds: float = 0.0
    sampled_seconds: float = 0.0
    held_byte_seconds: float = 0.0
    pinned_byte_seconds: float = 0.0
    useful_byte_seconds: float = 0.0
    # (begin of a sampled step, its seconds, bytes that running requests depend on)
    useful_curve: list[tuple[float, float, float]] = field(default_factory=list)

    def released(self, request: Request, release_time: float) -> None:
        """Start a request's log."""
        self.logs[request.id] = RequestLog(request, release_time)

    def began(self, step: Step, now: float) -> None:
        """Note that a step is launched, and whose wait that ends."""
        for rid, _, _ in step.chunks:
            log = self.logs[rid]
            log.begin_time = now if log.begin_time is None else log.begin_time

    def step(self, step: Step, running: int, seconds: float) -> None:
        """Count one step of `seconds` during which `running` requests were admitted."""
        self.steps += 1
        self.prefill_tokens += step.prefill_tokens
        self.decode_tokens += len(step.decodes)
        self.busy_seconds += seconds
        self.running_seconds += seconds * running
        for rid, start, end in step.chunks:
            log = self.logs[rid]
            if log.hit_tokens is None:
                log.hit_tokens = log.computed_tokens = start
            self.recomputed_tokens += max(0, min(end, log.computed_tokens) - start)
            log.computed_tokens = max(log.computed_tokens, end)
        for rid, length in step.decodes:
            log = self.logs[rid]
            log.computed_tokens = max(log.computed_tokens, length)

    def output(self, rid: str, count: int, now: float) -> None:
        """Note that a request has `count` output tokens at the end of a step."""
        log = self.logs[rid]
        if log.first_token_time is None and count > 0:
            log.first_token_time = now
        self.output_tokens += count - log.output_tokens
        log.output_tokens = count

    def finished(self, rid: str, now: float, *, aborted: bool) -> None:
        """Close a request's log."""
        log = self.logs[rid]
        log.finish_time, log.aborted = now, aborted
        self.finish_times.append(now)

    def sample_bytes(
        self,
        pool: PoolBytes,
        step: Step,
        now: float,
        seconds: float,
        other_lengths: dict[str, int],
    ) -> None:
        """Add a sample of the pool that stands for `seconds` of simulated time from `now` on.

        `other_lengths` are the KV lengths of admitted requests that sat the step out.
        """
        lengths = {rid: end for rid, _, end in step.chunks} | dict(step.decodes) | other_lengths
        running = [(self.logs[rid].request, length) for rid, length in lengths.items()]
        shrunk = useful_bytes(self.geometry, running) / self.geometry.shrink_factor
        self.sampled_seconds += seconds
        self.held_byte_seconds += pool.held * seconds
        self.pinned_byte_seconds += pool.pinned * seconds
        self.useful_byte_seconds += shrunk * seconds
        self.useful_curve.append((now, seconds, shrunk))
