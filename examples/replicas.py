"""Replicas of a model on Jenga memory behind SGLang's router, by one command:

    pip install sglang-router==0.3.2
    python -m examples.replicas --model-path M --port 30000 [any launch_server argument]

The router answers on the port, the servers on those behind it. It sends a prompt to the server that
it has sent the most of the same text before (`cache_aware`), unless that one has far more to do.
"""

import argparse
import http.client
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

from examples.demo_model.serve import (
    HOST,
    POLL_SECONDS,
    health_status,
    refuse_taken_port,
    start_server,
    wait_until_healthy,
)

POLICY = "cache_aware"


def main() -> None:
    """Run servers and router until one of them ends or somebody interrupts."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--replicas", type=int, default=2)
    args, server_args = parser.parse_known_args()
    if find_spec("sglang_router") is None:
        raise SystemExit("The router is a package of its own: pip install sglang-router==0.3.2")
    ports = server_ports(args.port, args.replicas)
    for port in (args.port, *ports):
        refuse_taken_port(port)
    running = [start_server(args.model_path, port, server_args) for port in ports]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        if all(wait_until_healthy(*server) for server in zip(running, ports, strict=True)):
            running.append(subprocess.Popen(router_command(args.port, ports)))
            wait_until_routed(running[-1], args.port)
            wait_for_any(running)
    except KeyboardInterrupt:
        pass
    finally:
        stop(running)


def server_ports(port: int, replicas: int) -> list[int]:
    """One for each server, behind the router's own and that of its metrics."""
    return [port + 2 + index for index in range(replicas)]


def router_command(port: int, ports: list[int]) -> list[str]:
    """What starts the router in front of servers on ``ports`` of this machine."""
    command = [sys.executable, "-m", "sglang_router.launch_router", "--policy", POLICY]
    command += ["--host", HOST, "--port", str(port), "--prometheus-port", str(port + 1)]
    return [*command, "--worker-urls", *[f"http://{HOST}:{worker}" for worker in ports]]


def wait_until_routed(router: subprocess.Popen[bytes], port: int) -> None:
    """Say how to ask as soon as the router answers."""
    while router.poll() is None:
        if health_status(port) == http.client.OK:
            print(f"Ready: http://{HOST}:{port}/v1/chat/completions, /generate", flush=True)
            return
        time.sleep(POLL_SECONDS)


def wait_for_any(running: list[subprocess.Popen[bytes]]) -> None:
    """Return when one of ``running`` has ended."""
    while all(process.poll() is None for process in running):
        time.sleep(POLL_SECONDS)


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs, the router first."""
    for process in reversed(running):
        process.terminate()
    for process in running:
        process.wait()


if __name__ == "__main__":
    main()
