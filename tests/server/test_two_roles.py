"""Prompts computed by one server and answered by another over Mooncake's own engine, on loopback,
through HTTP and SGLang's router."""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from client import PATIENCE_SECONDS, Client


def what_mooncake_lacks() -> str:
    """Why its engine cannot be loaded; empty where it can."""
    if find_spec("mooncake") is None:
        return "mooncake-transfer-engine-non-cuda is not installed"
    try:
        import mooncake.engine  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


LACKING = what_mooncake_lacks()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(LACKING), reason=LACKING or "-")]

# page ± 1, window ± 1, chunk edges
LENGTHS = (2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 127, 128, 129, 300)
POOL = ("--max-total-tokens", "8000", "--page-size", "16", "--chunked-prefill-size", "128")
LOOPBACK = {
    "SGLANG_HOST_IP": "127.0.0.1",
    "MC_FORCE_TCP": "1",
    # Who waits for a server that is gone gives up soon.
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "1",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "30",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "30",
    "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT": "5",
}
rooms = itertools.count(1)


class Pair:
    """A prefill and a decode server; asked as a router asks them, both at once."""

    def __init__(self, prefill: Client, decode: Client, bootstrap_port: int) -> None:
        self.prefill, self.decode, self.bootstrap_port = prefill, decode, bootstrap_port

    def body(self, prompt: list[int], num_tokens: int) -> dict[str, Any]:
        """What both servers are asked, in a room of its own."""
        return {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.bootstrap_port,
            "bootstrap_room": next(rooms),
        }

    def ask(self, prompt: list[int], num_tokens: int) -> tuple[int, list[int]]:
        """Status of the decode server's answer, and its tokens."""
        body = self.body(prompt, num_tokens)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(self.prefill.request, "POST", "/generate", body)
            status, text = self.decode.request("POST", "/generate", body)
            with contextlib.suppress(OSError, http.client.HTTPException):
                first.result()
        return status, json_tokens(text) if status == 200 else []

    def ask_all(self, prompts: list[list[int]], num_tokens: int = 12) -> list[list[int]]:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda prompt: self.ask(prompt, num_tokens), prompts))
        assert {status for status, _ in answers} == {200}
        return [tokens for _, tokens in answers]


def json_tokens(text: str) -> list[int]:
    tokens: list[int] = json.loads(text)["output_ids"]
    return tokens


def prompts(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    drawn = [[draw.randrange(32, 120) for _ in range(n)] for n in LENGTHS]
    return [*drawn, drawn[-1] + drawn[3]]


def start_prefill(start: Callable[..., Client], port: int, *flags: str) -> Client:
    role = ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", str(port))
    wire = ("--disaggregation-transfer-backend", "mooncake_tcp")
    return start(*role, *wire, *POOL, *flags, env=LOOPBACK)


def start_decode(start: Callable[..., Client], *flags: str) -> Client:
    role = ("--disaggregation-mode", "decode", "--disaggregation-transfer-backend", "mooncake_tcp")
    return start(*role, *POOL, *flags, env=LOOPBACK)


def start_pair(start: Callable[..., Client], port: int, *flags: str, decode: Any = ()) -> Pair:
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(start_prefill, start, port, *flags)
        other = threads.submit(start_decode, start, *flags, *decode)
        return Pair(one.result(), other.result(), port)


@pytest.fixture(scope="module")
def pair(start_jenga: Callable[..., Client], free_port: Callable[[], int]) -> Pair:
    return start_pair(start_jenga, free_port())


@pytest.fixture
def stock_pair(
    start_server: Callable[..., Any], taught_model: Path, free_port: Callable[[], int]
) -> Iterator[Pair]:
    def start(*flags: str, env: dict[str, str]) -> Client:
        common = ("--model-path", str(taught_model), "--dtype", "float32", "--random-seed", "0")
        started = start_server(*common, *flags, env=env)
        return Client(started.port, started.process, started.log_path)

    backup = ("--disaggregation-decode-retraction-backup", "cpu_tensor", "--hicache-ratio", "1")
    pair = start_pair(start, free_port(), decode=backup)
    yield pair
    for server in (pair.prefill, pair.decode):
        server.process.terminate()


def test_a_pair_answers_as_one_server_does(pair: Pair, start_jenga: Callable[..., Client]) -> None:
    asked = prompts(1)
    answers = pair.ask_all(asked)
    again = pair.ask_all(asked)
    alone = start_jenga(*POOL)
    assert answers == again == [alone.generate(prompt, 12)["output_ids"] for prompt in asked]
    alone.process.terminate()
    for server in (pair.prefill, pair.decode):
        server.assert_clean()


@pytest.mark.skipif(find_spec("sglang_router") is None, reason="sglang-router is not installed")
def test_the_router_joins_the_two(pair: Pair, free_port: Callable[[], int], tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    command += ["--prefill", pair.prefill.url, str(pair.bootstrap_port)]
    command += ["--decode", pair.decode.url, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(free_port())]
    asked = prompts(2)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    router = Client(port, process, tmp_path / "log")
    try:
        wait_until_ready(router)
        answers = [router.generate(prompt, 12)["output_ids"] for prompt in asked]
    finally:
        process.terminate()
        process.wait()
    assert answers == pair.ask_all(asked)


def wait_until_ready(router: Client) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if router.request("GET", "/readiness")[0] == 200:
                return
        assert router.process.poll() is None and time.monotonic() < deadline, router.log()[-3000:]
        time.sleep(0.5)


def test_a_prefill_server_that_is_killed_is_missed_and_replaced(
    pair: Pair, start_jenga: Callable[..., Client], free_port: Callable[[], int]
) -> None:
    """Its requests end, the decode server loses nothing, and serves the next one."""
    port = free_port()
    doomed = Pair(start_prefill(start_jenga, port), pair.decode, port)
    long = [[40 + seed, *prompts(seed)[-2] * 5] for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(doomed.ask, prompt, 40) for prompt in long]
        doomed.prefill.wait_for("Prefill batch")
        os.killpg(doomed.prefill.process.pid, signal.SIGKILL)
        statuses = [answer.result()[0] for answer in asked]
    assert any(status != 200 for status in statuses)
    expected = pair.ask_all(long[:2])
    assert [len(tokens) for tokens in expected] == [12, 12]
    pair.decode.assert_clean()


def test_a_decode_server_that_is_killed_is_missed_and_replaced(
    pair: Pair, start_jenga: Callable[..., Client]
) -> None:
    doomed = Pair(pair.prefill, start_decode(start_jenga), pair.bootstrap_port)
    long = [[60 + seed, *prompts(seed)[-2] * 5] for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(dying_answer, doomed, prompt) for prompt in long]
        doomed.decode.wait_for("Decode batch")
        os.killpg(doomed.decode.process.pid, signal.SIGKILL)
        assert not all(answer.result() for answer in asked)
    assert all(pair.ask_all(long[:2]))
    pair.prefill.assert_clean()


def dying_answer(pair: Pair, prompt: list[int]) -> Any:
    """The tokens, or none where the server died."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return pair.ask(prompt, 400)[1]
    return None


@pytest.mark.parametrize("memory", ["pair", "stock_pair"])
def test_an_abort_before_the_handshake_is_lost_as_with_stock(
    memory: str, request: pytest.FixtureRequest
) -> None:
    """The prefill server knows nobody yet whom to tell: the decode server waits in vain."""
    asked: Pair = request.getfixturevalue(memory)
    body = asked.body(prompts(3)[-1], 8) | {"rid": "early"}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(asked.prefill.request, "POST", "/generate", body)
        time.sleep(3)
        assert asked.prefill.request("POST", "/abort_request", {"rid": "early"})[0] == 200
        first.result()
    status, text = asked.decode.request("POST", "/generate", body)
    assert status != 200 and "timed out" in text, text
    # Nobody else is concerned.
    assert all(asked.ask_all(prompts(4)[:3]))
    if memory == "pair":
        asked.prefill.assert_clean()
        asked.decode.assert_clean()


def test_two_ranks_on_both_sides_answer_as_one_server_does(
    pair: Pair, start_jenga: Callable[..., Client], free_port: Callable[[], int]
) -> None:
    ranks = start_pair(start_jenga, free_port(), "--tp-size", "2")
    asked = prompts(5)
    assert ranks.ask_all(asked) == pair.ask_all(asked)
    for server in (ranks.prefill, ranks.decode):
        server.assert_clean()
        server.process.terminate()
