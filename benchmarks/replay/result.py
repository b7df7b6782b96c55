"""Turns what was recorded into the figures of a run."""

import hashlib
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.replay.moved import DEVICE_WORK
from benchmarks.replay.recorder import Recorder, RequestLog
from benchmarks.replay.spec import RunSpec

# The middle of a run, as shares of its completions: without ramp-up and drain.
MID_SHARES = (0.2, 0.8)


def summarise(
    spec: RunSpec, recorder: Recorder, hit_bound: float, manager_us: float, wall_seconds: float
) -> dict[str, Any]:
    """Return the run's figures. Rates are per simulated second, fractions are of the budget."""
    logs = list(recorder.logs.values())
    seconds = max(recorder.finish_times) - min(log.release_time for log in logs)
    scheduled = recorder.prefill_tokens + recorder.decode_tokens
    prompt_tokens = sum(log.request.prompt_tokens for log in logs)
    hit_tokens = sum(log.hit_tokens or 0 for log in logs)
    budget = spec.shrunk_kv_bytes * recorder.sampled_seconds
    return {
        **describe(spec),
        "out_tok_s": recorder.output_tokens / seconds,
        "mid_out_tok_s": mid_output_rate(logs),
        "mid_emitted_tok_s": mid_emission_rate(recorder),
        "total_tok_s": (prompt_tokens + recorder.output_tokens) / seconds,
        "hit_rate": hit_tokens / prompt_tokens,
        "hit_tokens": hit_tokens,
        "hit_bound": hit_bound,
        "mean_running": recorder.running_seconds / recorder.busy_seconds,
        "retractions": recorder.retractions,
        "recomputed_tokens": recorder.recomputed_tokens,
        "useful_frac": recorder.useful_byte_seconds / budget,
        "mid_useful_frac": mid_useful_bytes(recorder) / spec.shrunk_kv_bytes,
        "pinned_frac": recorder.pinned_byte_seconds / budget,
        "held_frac": recorder.held_byte_seconds / budget,
        "manager_us_per_token": manager_us / scheduled,
        "moved_bytes": DEVICE_WORK.moved_bytes * spec.geometry.shrink_factor,
        "zeroed_bytes": DEVICE_WORK.zeroed_bytes * spec.geometry.shrink_factor,
        "written_bytes": DEVICE_WORK.written_bytes * spec.geometry.shrink_factor,
        "loaded_bytes": DEVICE_WORK.loaded_bytes * spec.geometry.shrink_factor,
        **time_to_first_token(logs),
        "longest_wait_s": longest_wait(logs),
        "requests": len(logs),
        "aborted_requests": sum(log.aborted for log in logs),
        "steps": recorder.steps,
        "prefill_tokens": recorder.prefill_tokens,
        "decode_tokens": recorder.decode_tokens,
        **_accepted(spec, recorder),
        "simulated_seconds": seconds,
        "wall_seconds": wall_seconds,
    }


def _accepted(spec: RunSpec, recorder: Recorder) -> dict[str, float]:
    """Output tokens of a request in one step that verifies its drafts."""
    if spec.drafting is None or not recorder.decode_tokens:
        return {}
    # The first token of every answer comes with its prompt.
    tokens = recorder.output_tokens - len(recorder.logs)
    return {"accept_length": tokens / recorder.decode_tokens}


def describe(spec: RunSpec) -> dict[str, Any]:
    """Return what was run, so that the run can be repeated."""
    return {
        "backend": spec.backend,
        "geometry": spec.geometry.name,
        "trace": spec.trace.name,
        "trace_sha256": hashlib.sha256(spec.trace.read_bytes()).hexdigest(),
        "kv_bytes": spec.kv_bytes,
        "shrink_factor": spec.geometry.shrink_factor,
        "page_size_tokens": spec.page_size_tokens,
        "chunk_tokens": spec.chunk_tokens,
        "max_running_requests": spec.max_running_requests,
        "swa_full_tokens_ratio": spec.swa_full_tokens_ratio,
        "mamba_full_memory_ratio": spec.mamba_full_memory_ratio,
        "window_pool": spec.window_pool,
        "jenga_policies": spec.jenga_policies,
        "overlap": spec.overlap,
        "host_bytes": spec.host_bytes,
        "copy_bytes_per_s": spec.copy_bytes_per_s,
        "write_policy": spec.write_policy if spec.host_bytes else None,
        **_drafts(spec),
        "sglang": version("sglang"),
    }


def _drafts(spec: RunSpec) -> dict[str, Any]:
    if spec.drafting is None:
        return {}
    drafting = spec.drafting
    return {
        "draft": drafting.draft.name,
        "draft_algorithm": drafting.algorithm,
        "draft_steps": drafting.steps,
        "acceptance": drafting.acceptance,
    }


def mid_window(logs: list[RequestLog]) -> tuple[float, float]:
    """Return when 20 % and when 80 % of the requests had finished, in simulated seconds."""
    finishes = sorted(log.finish_time for log in logs if log.finish_time is not None)
    begin, end = (finishes[int(share * (len(finishes) - 1))] for share in MID_SHARES)
    return begin, end


def mid_output_rate(logs: list[RequestLog]) -> float:
    """Return output tokens per second of the requests that finished in the middle window."""
    begin, end = mid_window(logs)
    tokens = sum(
        log.output_tokens
        for log in logs
        if log.finish_time is not None and begin < log.finish_time <= end
    )
    return tokens / (end - begin) if end > begin else 0.0


def mid_emission_rate(recorder: Recorder) -> float:
    """Return output tokens per second that were emitted in the middle window, by any request."""
    begin, end = mid_window(list(recorder.logs.values()))
    tokens = sum(
        after - before
        for (_, before), (time, after) in pairwise([(0.0, 0), *recorder.output_curve])
        if begin < time <= end
    )
    return tokens / (end - begin) if end > begin else 0.0


def mid_useful_bytes(recorder: Recorder) -> float:
    """Return the mean, over the middle window, of the bytes that running requests depend on."""
    begin, end = mid_window(list(recorder.logs.values()))
    samples = [(s, used) for now, s, used in recorder.useful_curve if begin <= now < end]
    seconds = sum(s for s, _ in samples)
    return sum(s * used for s, used in samples) / seconds if seconds else 0.0


def longest_wait(logs: list[RequestLog]) -> float:
    """Return the most seconds from release to the begin of the step with a request's first chunk,
    which is as soon as SGLang has admitted it."""
    return max(log.begin_time - log.release_time for log in logs if log.begin_time is not None)


def time_to_first_token(logs: list[RequestLog]) -> dict[str, float]:
    """Return median and 99th percentile, in seconds from release to first token."""
    times = [
        log.first_token_time - log.release_time for log in logs if log.first_token_time is not None
    ]
    p50, p99 = np.percentile(times, [50, 99])
    return {"ttft_p50_s": float(p50), "ttft_p99_s": float(p99)}
