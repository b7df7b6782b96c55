"""One model over two nodes, as two servers that find each other on loopback: ranks and stages."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from client import JENGA, PATIENCE_SECONDS, STRICT, Client
from models.released import RELEASED
from models.tiny import write_model

pytestmark = pytest.mark.long
ENVIRONMENT = STRICT | {"JENGA_LOG_DIGEST": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.mark.parametrize("size", ["--tp-size", "--pp-size"])
def test_two_nodes_answer_as_one_does(
    size: str,
    start_jenga: Callable[..., Client],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    model = write_model(tmp_path / "model", RELEASED["gpt_oss"], seed=0)
    pool = ("--max-total-tokens", "4096", "--page-size", "16", "--chunked-prefill-size", "128")
    nodes = (size, "2", "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{free_port()}")
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), *JENGA]
    command += [*pool, *nodes, "--node-rank", "1", "--port", str(free_port())]
    with (tmp_path / "second").open("wb") as log:
        second = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        both = start_jenga(*pool, *nodes, "--node-rank", "0", model=model, env=ENVIRONMENT)
        alone = start_jenga(*pool, model=model)
        asked = [[40 + n] * (10 + 37 * n) for n in range(8)]
        for prompt in (*asked, *asked):
            expected = alone.generate(prompt, 16)["output_ids"]
            assert both.generate(prompt, 16)["output_ids"] == expected
        both.assert_clean()
        assert_nodes_agree(both.log_path, tmp_path / "second")
    finally:
        # It would wait for the first node to say so.
        os.killpg(second.pid, signal.SIGKILL)
        second.wait()


def assert_nodes_agree(*logs: Path) -> None:
    """The books of both were the same at every idle check that both have made."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = [re.findall(r"jenga digest (\w+)", log.read_text()) for log in logs]
        both = min(map(len, found))
        if both >= 3:
            assert found[0][:both] == found[1][:both]
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
