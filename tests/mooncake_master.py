"""Mooncake's store on this machine alone, over TCP, where it is installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAM = "mooncake_master"
PATIENCE_SECONDS = 60.0


@contextmanager
def mooncake_master(folder: Path) -> Iterator[str]:
    """The address of a master whose log is in ``folder``; skips where there is no program."""
    program = shutil.which(PROGRAM) or _beside_the_package()
    if program is None:
        pytest.skip("mooncake is not installed")
    ports = _free_ports(2)
    with (folder / "master.log").open("w") as log:
        command = [program, f"--rpc_port={ports[0]}", f"--metrics_port={ports[1]}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(ports[0])
        yield f"127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.wait()


def loopback(master: str) -> dict[str, Any]:
    """What `--hicache-storage-backend-extra-config` says of a store of 64 MiB over ``master``."""
    return {
        "master_server_address": master,
        "local_hostname": "127.0.0.1",
        "protocol": "tcp",
        "global_segment_size": 1 << 26,
    }


def _beside_the_package() -> str | None:
    spec = find_spec("mooncake")
    found = Path(spec.origin).parent / PROGRAM if spec and spec.origin else Path(PROGRAM)
    return str(found) if os.access(found, os.X_OK) else None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(port: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with socket.socket() as each:
            if each.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "nobody listens"
        time.sleep(0.05)
