"""`make serve`: what it starts, and what it says."""

import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from examples.demo_model import serve


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines of servers; each ends at once with status 3."""
    started: list[list[str]] = []

    def start(command: list[str]) -> Any:
        started.append(command)
        return SimpleNamespace(poll=lambda: 3, wait=lambda: 3)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    return started


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The status with which the command ends."""
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        serve.main()
    return ended.value.code


def test_all_other_arguments_go_to_the_server_and_its_status_comes_back(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, free_port: Any
) -> None:
    port = str(free_port())
    given = ["--model-path", "m", "--port", port, "--page-size", "8", "--dtype=float32"]
    assert run(monkeypatch, *given) == 3
    ((_, *command),) = commands
    assert command == ["-m", "sglang.launch_server", "--memory-backend", "jenga", *given]


def test_a_taken_port_is_refused_before_anything_starts(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((serve.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        said = run(monkeypatch, "--model-path", "m", "--port", str(port))
    assert said == f"Port {port} is taken: choose another with PORT=…"
    assert not commands


def test_the_invitation_names_what_can_be_asked_and_seen() -> None:
    text = serve.invitation(4711)
    assert "http://127.0.0.1:4711/v1/completions" in text and "http://127.0.0.1:4711/jenga" in text
