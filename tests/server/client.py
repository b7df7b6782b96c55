"""How the tests of this folder talk to a server, and how they know that it lost nothing."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JENGA = ("--memory-backend", "jenga", "--dtype", "float32", "--random-seed", "0")
# SGLang's own leak check, at every step and not only when idle.
STRICT = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "OMP_NUM_THREADS": "1"}
PATIENCE_SECONDS = 300
# What SGLang and Jenga log when the books do not add up, or something broke.
TROUBLE = ("leak detected", "leak Detected", "Traceback", "Scheduler hit an exception")


@dataclass(frozen=True)
class Client:
    """A server on this machine, its process and its log."""

    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it at once, and every process that it has started: it takes gigabytes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and text of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer; any status but 200 fails."""
        status, text = self.request("POST", path, body)
        assert status == 200, f"{path}: {status} {text}"
        return json.loads(text)

    def generate(self, prompt: Any, num_tokens: int = 16, **fields: Any) -> Any:
        """Greedy continuation of exactly ``num_tokens`` tokens; ``sampling`` adds parameters."""
        sampling = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
        sampling |= fields.pop("sampling", {})
        body: dict[str, Any] = {"sampling_params": sampling, **fields}
        body["text" if isinstance(prompt, str) else "input_ids"] = prompt
        return self.post("/generate", body)

    def stream(self, path: str, body: Any) -> Iterator[Any]:
        """The events of a streamed answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            for line in connection.getresponse():
                event = line.decode().removeprefix("data:").strip()
                if event == "[DONE]":
                    return
                if event:
                    yield json.loads(event)

    def flush_cache(self) -> None:
        status, text = self.request("POST", f"/flush_cache?timeout={PATIENCE_SECONDS}")
        assert status == 200, text

    def facts(self) -> Any:
        """What the server tells about its Jenga pool."""
        return self.internal_state()["jenga"]

    def internal_state(self) -> Any:
        status, text = self.request("GET", "/server_info")
        assert status == 200, text
        return json.loads(text)["internal_states"][0]

    def metric(self, name: str) -> float:
        """The sum of a gauge or counter over its labels."""
        _, text = self.request("GET", "/metrics")
        lines = [line for line in text.splitlines() if line.split("{")[0] == name]
        assert lines, f"{name} is not among the metrics"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def log(self) -> str:
        """The log without the line that repeats every argument."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "server_args=" not in line)

    def wait_for(self, what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when ``what`` is in the log."""
        deadline = time.monotonic() + seconds
        while what not in self.log():
            assert time.monotonic() < deadline, f"{what!r} never came:\n{self.log()[-4000:]}"
            time.sleep(0.1)

    def assert_clean(self) -> None:
        """Wait until the idle check has recounted the pool as it is; nothing may be in use or
        lost, by its count and by SGLang's."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (facts := self.facts())["recounted"]:
            assert time.monotonic() < deadline, "the server never came to rest"
            time.sleep(0.1)
        assert not any(group["used_bytes"] for group in facts["groups"]), facts
        owned = sum(group["large_pages"] for group in facts["groups"])
        assert facts["free_large_pages"] + owned == facts["num_large_pages"], facts
        assert self.process.poll() is None
        log = self.log()
        assert not [word for word in TROUBLE if word in log], log[-6000:]
