"""What tests of every kind share: ports, models made on the spot, and servers that always stop."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# One commit, one result: `make test-long` draws anew each time.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

if os.environ.get("TRITON_INTERPRET") == "1":
    import quick_interpreter  # noqa: F401

# Servers that tests of these folders share are started once, not once for every worker.
SHARED_SERVERS = {"server", "web"}
LONG_FOLDERS = SHARED_SERVERS | {"e2e", "interpreted", "recall"}
LAUNCH_FORKED = str(Path(__file__).parent / "launch_forked.py")
START_SECONDS = 420
STOP_SECONDS = 30


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`pytest -n N --dist loadgroup`: tests of one file, or around one server, stay together,
    unless they are marked otherwise; what takes long is begun first."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        folder = item.path.parent.name
        group = folder if folder in SHARED_SERVERS else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=takes_seconds)


def takes_seconds(item: pytest.Item) -> bool:
    return item.path.parent.name not in LONG_FOLDERS and not item.get_closest_marker("slow")


@dataclass(frozen=True)
class RunningServer:
    """A server that answers on a port of this machine."""

    port: int
    process: "subprocess.Popen[bytes] | ForkedProcess"
    log_path: Path

    def post(self, path: str, body: dict[str, Any], timeout: float = 120) -> Any:
        """Send JSON and return the JSON answer; an HTTP error fails the test with its text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        assert response.status == 200, f"{path}: {response.status} {text}"
        return json.loads(text)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demonstration model in float32, made once per run."""
    from examples.demo_model.model import make_demo_model

    return make_demo_model(tmp_path_factory.mktemp("model") / "demo", dtype="float32")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that returns a port nothing listens on."""
    return find_free_port


@pytest.fixture(scope="module")
def start_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., RunningServer]]:
    """A function `(*flags, env={}, port=…, is_forked=True) -> RunningServer`; the module's servers
    stop with it."""
    yield from server_starter(tmp_path_factory)


@pytest.fixture(scope="session")
def start_shared_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., RunningServer]]:
    """Like `start_server`, for servers that the modules of a folder share: they take gigabytes, and
    stop with the folder's last test."""
    yield from server_starter(tmp_path_factory, shared_servers)


shared_servers = contextlib.ExitStack()


@pytest.hookimpl(trylast=True)  # fixtures of the last test may still need them
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != item.path.parent:
        shared_servers.close()


def server_starter(
    tmp_path_factory: pytest.TempPathFactory, servers: contextlib.ExitStack | None = None
) -> Iterator[Callable[..., RunningServer]]:
    with servers or contextlib.ExitStack() as stack:

        def start(
            *flags: str,
            env: dict[str, str] | None = None,
            port: int | None = None,
            is_forked: bool = True,
        ) -> RunningServer:
            log_path = tmp_path_factory.mktemp("server") / "log"
            server = running_server(flags, env or {}, log_path, port, is_forked=is_forked)
            return stack.enter_context(server)

        yield start


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_server(
    flags: tuple[str, ...],
    env: dict[str, str],
    log_path: Path,
    port: int | None = None,
    *,
    is_forked: bool = True,
) -> Iterator[RunningServer]:
    """Start `sglang.launch_server`, wait until it is healthy, and stop its whole process group.
    Unless it ``is_forked`` (`launch_forked`), each of its processes imports SGLang and compiles
    operators, as a user's does."""
    port = port or find_free_port()
    flags = ("--port", str(port), *flags)
    start = fork_server if is_forked else launch_server
    process = start(flags, env, log_path)
    server = RunningServer(port, process, log_path)
    try:
        wait_until_healthy(server)
        yield server
    finally:
        stop_group(process)


def launch_server(
    flags: tuple[str, ...], env: dict[str, str], log_path: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sglang.launch_server", *flags]
    environment = os.environ | env
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


class ForkedProcess:
    """As much of `subprocess.Popen` as tests use, of somebody else's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """None while it runs, then some number, though nobody may have waited for it."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return 0 if state == "Z" else None

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float = START_SECONDS) -> None:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.05)


launchers: dict[frozenset[tuple[str, str]], subprocess.Popen[str]] = {}


def fork_server(flags: tuple[str, ...], env: dict[str, str], log_path: Path) -> ForkedProcess:
    """A server that shares what it imports with the last one, if their environments are the same:
    SGLang reads some of it when it is imported."""
    env = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"} | env
    key = frozenset(env.items())
    if key not in launchers:
        for last in launchers.values():
            assert last.stdin
            last.stdin.close()  # it has a gigabyte, and ends now
        launchers.clear()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, LAUNCH_FORKED]
        launchers[key] = subprocess.Popen(command, env=os.environ | env, text=True, **pipes)
    launcher = launchers[key]
    assert launcher.stdin and launcher.stdout
    launcher.stdin.write(json.dumps([flags, os.environ | env, str(log_path)]) + "\n")
    launcher.stdin.flush()
    pid = launcher.stdout.readline()
    assert pid, "the process that servers are forked from has ended; see its errors above"
    return ForkedProcess(int(pid))


def wait_until_healthy(server: RunningServer) -> None:
    """Return when the server answers; fail with the end of its log if it dies or never does."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        if health_status(server.port) == 200:
            return
        time.sleep(0.5)
    pytest.fail(f"the server did not start (status {server.process.poll()}):\n{tail(server)}")


def health_status(port: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


def tail(server: RunningServer, num_chars: int = 8000) -> str:
    return server.log()[-num_chars:]


def stop_group(process: "subprocess.Popen[bytes] | ForkedProcess") -> None:
    """End a server and every process that it started, politely first."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
