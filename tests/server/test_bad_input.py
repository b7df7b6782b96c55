"""Bad input gets an error and loses nothing: the next request is answered as ever, and the leak
checks, strict and on at every step, find every page."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client import Client

QUESTION = [20 + i % 200 for i in range(300)]  # several windows, no whole number of pages
NUM_ABORTS = 500
ABORTS_AT_ONCE = 25


@pytest.fixture(scope="module")
def answer(server: Client) -> list[int]:
    tokens: list[int] = server.generate(QUESTION)["output_ids"]
    return tokens


@pytest.fixture(autouse=True)
def nothing_is_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: clean books, and the same answer from the cache and without it."""
    if "server" not in request.fixturenames:
        yield
        return
    server: Client = request.getfixturevalue("server")
    answer = request.getfixturevalue("answer")
    yield
    server.assert_clean()
    assert server.generate(QUESTION)["output_ids"] == answer
    server.flush_cache()
    assert server.generate(QUESTION)["output_ids"] == answer
    server.assert_clean()


class TestPrompts:
    def test_one_longer_than_the_pool_is_refused_with_what_fits(self, server: Client) -> None:
        longest = server.facts()["longest_request_tokens"]
        prompt = [20] * longest
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 4}}
        status, text = server.request("POST", "/generate", body)
        assert status == 400
        assert f"{longest:,} tokens does not fit into the KV pool" in text
        assert f"the longest request that does has {longest:,} tokens" in text

    def test_one_longer_than_the_model_is_refused(self, server: Client) -> None:
        prompt = [20] * (server.facts()["max_length"] + 1)
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 4}}
        status, text = server.request("POST", "/generate", body)
        assert status == 400 and "longer than the model's context length" in text

    @pytest.mark.parametrize(
        ("path", "body", "said"),
        [
            ("/generate", {"input_ids": []}, "input_ids cannot be empty"),
            ("/generate", {"text": ""}, "The prompt is empty"),
            ("/v1/completions", {"model": "default", "prompt": ""}, "empty"),
            ("/v1/chat/completions", {"model": "default", "messages": []}, "empty"),
        ],
        ids=["tokens", "text", "completions", "chat"],
    )
    def test_an_empty_one_is_refused(
        self, server: Client, path: str, body: dict[str, Any], said: str
    ) -> None:
        status, text = server.request("POST", path, body)
        assert status == 400 and said in text

    def test_broken_json_is_refused(self, server: Client) -> None:
        assert server.request("POST", "/generate", "no object")[0] in (400, 422)


# Standard library only, so that it has started before the server has ended the answer.
STREAMING_CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
sampling = {"max_new_tokens": 4000, "ignore_eos": True}
body = {"input_ids": json.loads(sys.argv[2]), "sampling_params": sampling, "stream": True}
connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
for line in connection.getresponse():
    print("event", flush=True)
"""


class TestClientsThatLeave:
    def test_kill_9_in_the_middle_of_a_stream(self, server: Client) -> None:
        command = [sys.executable, "-c", STREAMING_CLIENT, str(server.port), json.dumps(QUESTION)]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == b"event\n"
        for client in clients:
            client.kill()  # SIGKILL
            client.communicate()
        server.assert_clean()

    def test_500_aborts_in_a_row(self, server: Client) -> None:
        """Prompts from one token to many chunks, so that aborts meet requests that wait, that are
        between chunks, and that decode."""

        def ask(number: int) -> Any:
            prompt = [20 + number % 100] * (1 + 7 * (number % 300))
            return server.generate(prompt, 4000, rid=f"abort-{number}")

        with ThreadPoolExecutor(ABORTS_AT_ONCE) as pool:
            for first in range(0, NUM_ABORTS, ABORTS_AT_ONCE):
                numbers = range(first, first + ABORTS_AT_ONCE)
                asked = [pool.submit(ask, number) for number in numbers]
                while not all(future.done() for future in asked):
                    for number in numbers:
                        server.request("POST", "/abort_request", {"rid": f"abort-{number}"})
                answers = [future.result()["meta_info"] for future in asked]
                assert {answer["finish_reason"]["type"] for answer in answers} == {"abort"}


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end, which must come by itself."""
    command = [sys.executable, "-m", "sglang.launch_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.long
def test_a_second_server_on_the_port_gives_up(server: Client, taught_model: Path) -> None:
    port = ("--port", str(server.port))
    done = launch("--model-path", str(taught_model), "--memory-backend", "jenga", *port)
    assert done.returncode != 0
    assert "address already in use" in (done.stdout + done.stderr).lower()


@pytest.mark.long
def test_a_pool_without_room_is_refused_in_one_line(taught_model: Path) -> None:
    flags = ("--memory-backend", "jenga", "--max-total-tokens", "16")
    done = launch("--model-path", str(taught_model), "--port", "1", *flags)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "jenga-sglang: " in line]
    assert len(lines) == 1 and "--max-total-tokens" in lines[0] and "more memory" in lines[0]


PARSE = textwrap.dedent(
    """
    import contextlib, io, json, sys
    from sglang.srt.plugins import load_plugins
    load_plugins()
    from sglang.srt.server_args import prepare_server_args

    def refusal(flags):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                prepare_server_args(["--model-path", "m", "--memory-backend", *flags])
        except SystemExit as refused:
            return [refused.code, said.getvalue()]

    print(json.dumps([refusal(flags) for flags in json.loads(sys.argv[1])]))
    """
)


def test_bad_flags_end_the_start_with_one_line() -> None:
    pages = [["jenga", "--page-size", "0"], ["jenga", "--page-size", "3"]]
    asked = [["nope"], *pages, ["jenga", "--enable-two-batch-overlap"]]
    command = [sys.executable, "-c", PARSE, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (status, usage), *lines = json.loads(done.stdout.splitlines()[-1])
    assert status == 2 and "--memory-backend: invalid choice: 'nope'" in usage.splitlines()[-1]
    flags = ("--page-size 0", "--page-size 3", "--enable-two-batch-overlap")
    for (line, _), flag in zip(lines, flags, strict=True):
        assert line.startswith(f"jenga-sglang: {flag}") and "\n" not in line
