"""Starts the servers that are compared, and asks them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 600
# One core for the server that computes. Threads that wait for each other while something else runs
# beside them would measure that.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Load:
    """Requests that are sent all at once: random prompts that share no prefix, and answers that
    end by themselves or after ``output_tokens``."""

    prompts: list[list[int]]
    output_tokens: int


@dataclass(frozen=True)
class Outcome:
    """What one load came to. ``peak_running`` is the largest decode batch in the server's log."""

    wall_s: float
    peak_running: int
    retractions: int
    outputs: list[list[int]]

    @property
    def output_tokens_per_s(self) -> float:
        return sum(map(len, self.outputs)) / self.wall_s


@dataclass(frozen=True)
class Server:
    """A running SGLang server and its log."""

    name: str
    port: int
    log: Path

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST JSON; the answer as JSON, or as text where it is none."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=3600) as response:
            text = response.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def run(self, load: Load) -> Outcome:
        """Flush the cache, send the whole load at once, and wait for every answer."""
        self.post("/flush_cache")
        seen = self.log.stat().st_size
        started = time.perf_counter()
        with ThreadPoolExecutor(len(load.prompts)) as pool:
            answers = list(pool.map(lambda ids: self._ask(ids, load.output_tokens), load.prompts))
        wall_s = time.perf_counter() - started
        log = self.log.read_bytes()[seen:].decode(errors="replace")
        return Outcome(
            wall_s,
            peak_running(log),
            sum(a["meta_info"]["num_retractions"] for a in answers),
            [a["output_ids"] for a in answers],
        )

    def _ask(self, input_ids: list[int], output_tokens: int) -> Any:
        sampling = {"max_new_tokens": output_tokens, "temperature": 0}
        return self.post("/generate", {"input_ids": input_ids, "sampling_params": sampling})


def peak_running(log: str) -> int:
    """The largest decode batch that a server's log tells of."""
    running = re.findall(r"Decode batch.*?#running-req: (\d+)", log)
    return max(map(int, running), default=0)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def start(
    name: str,
    flags: list[str],
    log: Path,
    module: str = "sglang.launch_server",
    ready: str = "/health",
) -> Iterator[Server]:
    """A server that answers ``ready``; it is stopped at the end. Raises ``RuntimeError`` with the
    log's end."""
    port = free_port()
    command = [sys.executable, "-m", module, "--port", str(port), *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}", log)
        yield Server(name, port, log)
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(1)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
