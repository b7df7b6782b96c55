"""`make demo`: the same programs on stock SGLang and on Jenga memory, in pools of equal bytes.

The two servers run one after the other. Outputs, cached tokens and the peak of memory per layer
group are printed side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.programs import PROGRAMS, Outcome, run_program

BACKENDS = {"default": "stock SGLang", "jenga": "Jenga"}
START_SECONDS = 420
POLL_SECONDS = 0.1
BUSY = 504  # a step takes longer than `/jenga/stats` waits for; the next look will do
MIB = 1 << 20


@dataclass
class Peaks:
    """The most that was in use and cached at any look; of stock SGLang, in tokens of all layers."""

    used: dict[str, int] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)

    def note(self, group: str, used: int, cached: int) -> None:
        self.used[group] = max(used, self.used.get(group, 0))
        self.cached[group] = max(cached, self.cached.get(group, 0))


@dataclass(frozen=True)
class Run:
    outcomes: dict[str, Outcome]
    peaks: Peaks
    stats: dict[str, Any] | None  # of `/jenga/stats`


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.epilog = "Any other argument goes to both servers."
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--program", choices=PROGRAMS, action="append", help="default: all")
    parser.add_argument(
        "--max-total-tokens",
        type=int,
        default=9000,
        help="pool of both, in tokens of stock's (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments, more = parser.parse_known_args()
    programs = arguments.program or list(PROGRAMS)
    flags = ["--model-path", arguments.model_path, *more]
    flags += ["--max-total-tokens", str(arguments.max_total_tokens)]
    runs = {backend: measure(backend, flags, programs) for backend in BACKENDS}
    show(runs, Console(width=None if sys.stdout.isatty() else 110))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures(runs), indent=1) + "\n")


def measure(backend: str, flags: list[str], programs: list[str]) -> Run:
    """Start a server, run the programs, and watch its memory meanwhile."""
    print(f"Starting {BACKENDS[backend]} …", flush=True)
    with running_server(backend, flags) as url:
        peaks, done = Peaks(), threading.Event()
        with ThreadPoolExecutor(1) as threads:
            watcher = threads.submit(watch, url, backend, peaks, done)
            try:
                outcomes = {}
                for name in programs:
                    print(f"  {name}", flush=True)
                    outcomes[name] = run_program(name, url)
            finally:
                done.set()
            watcher.result()
        stats = json.loads(get(f"{url}/jenga/stats")) if backend == "jenga" else None
    return Run(outcomes, peaks, stats)


def watch(url: str, backend: str, peaks: Peaks, done: threading.Event) -> None:
    while not done.wait(POLL_SECONDS):
        try:
            look(url, backend, peaks)
        except urllib.error.HTTPError as error:
            if error.code != BUSY:
                raise


def look(url: str, backend: str, peaks: Peaks) -> None:
    if backend == "jenga":
        for group in json.loads(get(f"{url}/jenga/stats"))["groups"]:
            peaks.note(group["name"], group["used_bytes"], group["cached_bytes"])
    else:
        text = get(f"{url}/metrics")
        peaks.note("tokens", gauge(text, "num_used_tokens"), gauge(text, "kv_evictable_tokens"))


def gauge(text: str, name: str) -> int:
    values = re.findall(rf"^sglang:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
    return int(float(values[0])) if values else 0


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as reply:
        text: str = reply.read().decode()
        return text


@contextlib.contextmanager
def running_server(backend: str, flags: list[str]) -> Iterator[str]:
    """The address of a server, which ends with the block. Raises ``SystemExit`` with the end of
    its log when it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sglang.launch_server", "--memory-backend", backend]
    command += ["--port", str(port), "--page-size", "16", "--random-seed", "0", *flags]
    # Gauges are published with every step's statistics.
    command += ["--enable-metrics", "--decode-log-interval", "1"]
    command += ["--constrained-json-disable-any-whitespace"]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            if not healthy(url, server):
                log.seek(0)
                raise SystemExit(f"{BACKENDS[backend]} did not start:\n{log.read()[-4000:]}")
            yield url
        finally:
            stop(server)


def healthy(url: str, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            get(f"{url}/health")
            return True
        time.sleep(0.5)
    return False


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def figures(runs: dict[str, Run]) -> dict[str, Any]:
    """The numbers of `show`, by group, in bytes."""
    stats = runs["jenga"].stats
    assert stats is not None
    stock, jenga = runs["default"].peaks, runs["jenga"].peaks
    groups = {
        group["name"]: {
            "stock_used_bytes": stock.used["tokens"] * group["bytes_per_token"],
            "stock_cached_bytes": stock.cached["tokens"] * group["bytes_per_token"],
            "jenga_used_bytes": jenga.used[group["name"]],
            "jenga_cached_bytes": jenga.cached[group["name"]],
        }
        for group in stats["groups"]
    }
    outcomes = {
        backend: {
            name: {"prompt_tokens": o.prompt_tokens, "cached_tokens": o.cached_tokens}
            for name, o in run.outcomes.items()
        }
        for backend, run in runs.items()
    }
    same = {
        name: runs["default"].outcomes[name].outputs == outcome.outputs
        for name, outcome in runs["jenga"].outcomes.items()
    }
    return {
        "pool_bytes": stats["pool_bytes"],
        "groups": groups,
        "programs": outcomes,
        "same_outputs": same,
    }


def show(runs: dict[str, Run], console: Console) -> None:
    facts = figures(runs)
    outputs = Table("program", "variable", *BACKENDS.values(), title="Outputs", show_lines=False)
    for name, ours in runs["jenga"].outcomes.items():
        stock = runs["default"].outcomes[name].outputs
        for (variable, theirs), (_, text) in zip(stock, ours.outputs, strict=True):
            same = "[dim](the same)[/]" if text == theirs else printable(text)
            outputs.add_row(name, variable, printable(theirs), same)
    console.print(outputs)

    cached = Table("program", *BACKENDS.values(), title="Cached of prompt tokens")
    for name in facts["same_outputs"]:
        cells = (facts["programs"][backend][name] for backend in BACKENDS)
        cached.add_row(name, *map(share, cells))
    console.print(cached)

    title = f"Peak memory in a pool of {facts['pool_bytes'] / MIB:.1f} MiB"
    memory = Table("group", title=title)
    for backend in BACKENDS.values():
        memory.add_column(f"{backend}, used", justify="right")
        memory.add_column("cached", justify="right")
    keys = ("stock_used_bytes", "stock_cached_bytes", "jenga_used_bytes", "jenga_cached_bytes")
    for group, peaks in facts["groups"].items():
        memory.add_row(group, *(f"{peaks[key] / MIB:.2f} MiB" for key in keys))
    console.print(memory)
    console.print(
        "Stock SGLang holds every token in every layer; peaks are those of looks 0.1 s apart."
    )


def share(cell: dict[str, int]) -> str:
    """A program that only selects generates nothing whose prompt is counted."""
    if not cell["prompt_tokens"]:
        return "-"
    return f"{cell['cached_tokens']:,} of {cell['prompt_tokens']:,}"


def printable(text: str) -> str:
    """A random model says anything: control characters and markup are shown, not obeyed."""
    shown = text.encode("unicode_escape").decode().replace("[", "\\[")
    return shown if len(shown) <= 60 else shown[:57] + "…"


if __name__ == "__main__":
    main()
