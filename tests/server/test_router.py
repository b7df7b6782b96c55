"""Replicas behind SGLang's router: what it asks of servers, and servers that come and go."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from client import PATIENCE_SECONDS, Client

from examples.replicas import router_command

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("sglang_router") is None, reason="sglang-router is not installed"),
]
METRICS = ("--enable-metrics", "--max-total-tokens", "8000")
PLAIN = ("--dtype", "float32", "--random-seed", "0", *METRICS)
# The router looks at its servers every second, and believes what it sees.
QUICK = ("--health-check-interval-secs", "1", "--health-failure-threshold", "1")
DOCUMENT = "The library opens at nine and closes at five. " * 6


class Router(Client):
    """The router, and what it says of its servers."""

    def workers(self) -> dict[str, dict[str, Any]]:
        """By URL."""
        status, text = self.request("GET", "/workers")
        assert status == 200, text
        return {worker["url"]: worker for worker in json.loads(text)["workers"]}

    def wait_until(self, healthy: set[str]) -> None:
        """Return when these servers, by URL, are those that it sends to."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while {url for url, worker in self.workers().items() if worker["is_healthy"]} != healthy:
            assert time.monotonic() < deadline, self.workers()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def replicas(start_jenga: Callable[..., Client]) -> list[Client]:
    """Two servers with metrics; requests that each has begun are counted there."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda _: start_jenga(*METRICS), range(2)))


@pytest.fixture(scope="module")
def router(
    replicas: list[Client],
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Router]:
    port = free_port()
    command = router_command(port, [server.port for server in replicas])
    command[command.index("--prometheus-port") + 1] = str(free_port())
    log_path = tmp_path_factory.mktemp("router") / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen([*command, *QUICK], stdout=log, stderr=subprocess.STDOUT)
    front = Router(port, process, log_path)
    try:
        wait_until_it_answers(front)
        front.wait_until({server.url for server in replicas})
        yield front
    finally:
        process.terminate()
        process.wait()


def wait_until_it_answers(front: Router) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            front.request("GET", "/workers")
            return
        time.sleep(0.2)


def finished(server: Client) -> float:
    """Requests that a server has answered."""
    return server.metric("sglang:num_requests_total")


def keys(answer: Any, path: str = "") -> set[str]:
    """Every field of an answer, and of objects in it."""
    if not isinstance(answer, dict):
        return set()
    found = {f"{path}/{key}" for key in answer}
    return found.union(*(keys(value, f"{path}/{key}") for key, value in answer.items()))


def test_what_the_router_asks_is_answered_as_stock_does(
    router: Router,
    replicas: list[Client],
    taught_model: Path,
    start_server: Callable[..., Any],
) -> None:
    asked = set(re.findall(r'"GET (/(?:health|model_info|server_info)) HTTP', replicas[0].log()))
    assert asked == {"/health", "/model_info", "/server_info"}
    stock = start_server("--model-path", str(taught_model), *PLAIN)
    for path in sorted(asked):
        ours = replicas[0].request("GET", path)
        theirs = Client(stock.port, stock.process, stock.log_path).request("GET", path)
        assert ours[0] == theirs[0] == 200
        if ours[1]:
            assert keys(json.loads(theirs[1])) <= keys(json.loads(ours[1])), path
    stock.process.terminate()


def test_a_conversation_stays_where_its_prefix_is(router: Router, replicas: list[Client]) -> None:
    alone = replicas[0].generate(DOCUMENT, 8)["output_ids"]
    for number in range(4):
        talk = f"{number}. {DOCUMENT}"
        for _ in range(3):
            answer = router.generate(talk, 8)
            talk += answer["text"] + " And then? "
        assert answer["meta_info"]["cached_tokens"] > len(DOCUMENT)
    assert router.generate(DOCUMENT, 8)["output_ids"] == alone


def test_a_server_that_is_drained_answers_what_it_has(
    router: Router, replicas: list[Client]
) -> None:
    leaving, staying = replicas
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(router.generate, f"{n}{DOCUMENT}", 60) for n in range(8)]
        while not leaving.metric("sglang:num_running_reqs"):
            assert not all(answer.done() for answer in asked), "it was never asked"
            time.sleep(0.05)
        worker = router.workers()[leaving.url]["id"]
        status, text = router.request("DELETE", f"/workers/{worker}")
        assert status in (200, 202), text
        assert all(len(answer.result()["output_ids"]) == 60 for answer in asked)
    router.wait_until({staying.url})
    leaving.assert_clean()
    before = finished(leaving)
    for n in range(4):
        router.generate(f"later {n}", 4)
    assert finished(leaving) == before
    status, text = router.request("POST", "/workers", {"url": leaving.url})
    assert status in (200, 202), text
    router.wait_until({leaving.url, staying.url})


def test_a_server_that_dies_is_left_out_until_it_is_back(
    router: Router, replicas: list[Client], start_jenga: Callable[..., Client]
) -> None:
    dying, staying = replicas
    os.killpg(dying.process.pid, signal.SIGKILL)
    dying.process.wait()
    for n in range(4):
        assert len(router.generate(f"without it {n}", 4)["output_ids"]) == 4
    router.wait_until({staying.url})
    back = start_jenga(*METRICS, port=dying.port)
    router.wait_until({dying.url, staying.url})
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda n: router.generate(f"{n} and back {DOCUMENT}", 4), range(12)))
    assert finished(back) > 0
    back.assert_clean()
    staying.assert_clean()
