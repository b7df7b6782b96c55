"""The example of replicas behind a router: what it starts, and what it says without the router."""

import sys

import pytest

from examples import replicas


def test_the_router_gets_every_server_and_looks_at_prompts() -> None:
    ports = replicas.server_ports(30000, 3)
    command = replicas.router_command(30000, ports)
    assert len({30000, 30001, *ports}) == 5  # the router's own port, its metrics', the servers'
    assert command[command.index("--policy") + 1] == "cache_aware"
    assert command[command.index("--port") + 1] == "30000"
    urls = command[command.index("--worker-urls") + 1 :]
    assert urls == [f"http://127.0.0.1:{port}" for port in ports]


def test_without_the_router_s_package_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["replicas", "--model-path", "m"])
    monkeypatch.setattr(replicas, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install sglang-router"):
        replicas.main()
