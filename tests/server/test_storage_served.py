"""Servers over storage: what one has left, another hits; attached, detached and cleared as they
run; two ranks over storage that fails, is slow, or hangs on one of them."""

import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from client import PATIENCE_SECONDS, Client
from hanging_storage import HANGS, HangingStorage
from mooncake_master import loopback, mooncake_master
from test_features import assert_ranks_agree, cached_tokens, prompt

PAGE_SIZE = 16
PROMPTS = [prompt(length, 2000 + length) for length in (900, 810, 720, 630)]
NUM_TOKENS = 16
KEY = "key"
FLAGS = (
    *("--max-total-tokens", "1200", "--page-size", str(PAGE_SIZE), "--chunked-prefill-size", "256"),
    *("--enable-hierarchical-cache", "--hicache-ratio", "8", "--enable-cache-report"),
    *("--hicache-write-policy", "write_through", "--enable-metrics"),
)
STORAGE = (
    *("--hicache-storage-backend", "file", "--hicache-storage-prefetch-policy", "wait_complete"),
    *("--hicache-storage-backend-extra-config", '{"prefetch_threshold": 16}'),
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def expected(start_jenga: Callable[..., Client]) -> list[list[int]]:
    """The answers of a server whose pool holds everything."""
    server = start_jenga("--max-total-tokens", "30000", "--page-size", str(PAGE_SIZE))
    answers = [server.generate(ids, NUM_TOKENS)["output_ids"] for ids in PROMPTS]
    server.stop()
    return answers


def wait_until_stored(server: Client) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while server.facts()["storage"]["queued_pages"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ask_all(server: Client, expected: list[list[int]]) -> list[int]:
    """Cached tokens of every prompt; answers are what they must be."""
    answers = [server.generate(ids, NUM_TOKENS) for ids in PROMPTS]
    assert [answer["output_ids"] for answer in answers] == expected
    return [cached_tokens(answer) for answer in answers]


def whole(ids: list[int]) -> int:
    """All whole pages but the one with the last token, which is computed again."""
    return (len(ids) - 1) // PAGE_SIZE * PAGE_SIZE


def test_a_server_hits_on_its_first_request_what_another_has_left(
    start_jenga: Callable[..., Client], expected: list[list[int]], tmp_path: Path
) -> None:
    folder = ("--file-storage-path", str(tmp_path))
    first = start_jenga(*FLAGS, *STORAGE, *folder)
    assert ask_all(first, expected) == [0] * len(PROMPTS)
    wait_until_stored(first)
    first.assert_clean()
    first.stop()
    second = start_jenga(*FLAGS, *STORAGE, *folder)
    answer = second.generate(PROMPTS[0], NUM_TOKENS)
    assert answer["output_ids"] == expected[0]
    details = answer["meta_info"]["cached_tokens_details"]
    assert details["storage"] == cached_tokens(answer) == whole(PROMPTS[0])
    assert details["device"] == details["host"] == 0
    assert ask_all(second, expected)[1:] == [whole(ids) for ids in PROMPTS[1:]]
    assert second.metric("sglang:jenga_storage_hit_tokens_total") > 0
    second.assert_clean()
    second.stop()


@pytest.mark.parametrize("backend", ["nixl", "mooncake"])
def test_a_server_hits_what_another_has_written_by_address(
    backend: str,
    start_jenga: Callable[..., Client],
    expected: list[list[int]],
    tmp_path: Path,
) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    with contextlib.ExitStack() as stack:
        extra: dict[str, Any] = {"prefetch_threshold": PAGE_SIZE}
        if backend == "mooncake":
            extra |= loopback(stack.enter_context(mooncake_master(tmp_path)))
        flags = (
            *(*FLAGS, "--hicache-storage-backend", backend),
            *("--hicache-storage-backend-extra-config", json.dumps(extra)),
            *("--hicache-storage-prefetch-policy", "wait_complete"),
        )
        env = {"SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR": str(tmp_path / "nixl")}
        first = start_jenga(*flags, env=env)
        assert ask_all(first, expected) == [0] * len(PROMPTS)
        wait_until_stored(first)
        second = start_jenga(*flags, env=env)
        assert ask_all(second, expected) == [whole(ids) for ids in PROMPTS]
        assert second.facts()["storage"]["hit_tokens"] > 0
        for server in (first, second):
            server.assert_clean()
            server.stop()


def administer(server: Client, method: str, path: str, body: Any = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def flush(server: Client) -> None:
    status, text = administer(server, "POST", f"/flush_cache?timeout={PATIENCE_SECONDS}")
    assert status == 200, text


def test_storage_comes_goes_and_is_cleared_as_a_server_runs(
    start_jenga: Callable[..., Client], expected: list[list[int]], tmp_path: Path
) -> None:
    server = start_jenga(*FLAGS, "--admin-api-key", KEY, "--file-storage-path", str(tmp_path))
    ask_all(server, expected)
    path = "/hicache/storage-backend"
    asked = {"hicache_storage_backend": "hf3fs"}
    status, text = administer(server, "PUT", path, asked)
    assert status == 400 and "has not been tried" in text
    asked = {
        "hicache_storage_backend": "file",
        "hicache_storage_backend_extra_config_json": '{"prefetch_threshold": 16}',
        "hicache_storage_prefetch_policy": "wait_complete",
    }
    status, text = administer(server, "PUT", path, asked)
    assert status == 200, text
    flush(server)
    assert ask_all(server, expected) == [0] * len(PROMPTS)
    wait_until_stored(server)
    assert list(tmp_path.glob("*.bin"))
    flush(server)
    assert ask_all(server, expected) == [whole(ids) for ids in PROMPTS]
    wait_until_stored(server)
    status, text = administer(server, "POST", f"{path}/clear")
    assert status == 200 and not list(tmp_path.glob("*.bin"))
    status, text = administer(server, "DELETE", path)
    assert status == 200, text
    flush(server)
    assert ask_all(server, expected) == [0] * len(PROMPTS)
    assert not list(tmp_path.glob("*.bin"))
    server.assert_clean()
    server.stop()


def test_two_ranks_decide_alike_over_storage_that_fails_and_is_slow(
    start_jenga: Callable[..., Client], expected: list[list[int]], tmp_path: Path
) -> None:
    env = {
        "JENGA_LOG_DIGEST": "1",
        "JENGA_POISON_FREED": "1",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.05",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.002",
    }
    folder = ("--file-storage-path", str(tmp_path))
    server = start_jenga("--tp", "2", *FLAGS, *STORAGE, *folder, env=env)
    for _ in range(4):
        ask_all(server, expected)
        wait_until_stored(server)
        server.assert_clean()
        server.flush_cache()
    facts = server.facts()["storage"]
    assert facts["hit_tokens"] > 0 and facts["failures"]
    server.assert_clean()
    assert_ranks_agree(server, checks=4)
    server.stop()


def test_a_backend_that_hangs_on_one_rank_holds_neither_up(
    start_jenga: Callable[..., Client], expected: list[list[int]], tmp_path: Path
) -> None:
    """Both go on without it, and use it again when it answers."""
    dynamic = {
        "backend_name": "hanging",
        "module_path": HangingStorage.__module__,
        "class_name": HangingStorage.__name__,
        "file_storage_path": str(tmp_path),
        "prefetch_threshold": PAGE_SIZE,
    }
    flags = (
        *("--hicache-storage-backend", "dynamic"),
        *("--hicache-storage-backend-extra-config", json.dumps(dynamic)),
        *("--hicache-storage-prefetch-policy", "wait_complete"),
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"JENGA_LOG_DIGEST": "1", "JENGA_STORAGE_SECONDS": "2", "PYTHONPATH": paths}
    server = start_jenga("--tp", "2", *FLAGS, *flags, env=env)
    ask_all(server, expected)
    wait_until_stored(server)
    server.flush_cache()
    (tmp_path / HANGS).touch()
    assert ask_all(server, expected) == [0] * len(PROMPTS)
    assert "no answer for 2 seconds" in server.log()
    (tmp_path / HANGS).unlink()
    wait_for_log(server, "the backend answers again")
    server.flush_cache()
    assert ask_all(server, expected) == [whole(ids) for ids in PROMPTS]
    server.assert_clean()
    assert_ranks_agree(server, checks=4)
    server.stop()


def wait_for_log(server: Client, line: str) -> None:
    """Asks for a token now and then: an idle server does not look."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while line not in server.log():
        assert time.monotonic() < deadline
        server.generate(prompt(20, 7), 1)
        time.sleep(0.2)
