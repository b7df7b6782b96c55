"""LoRA adapters on Jenga pages: whose prefixes are whose. The right answers are those of stock
SGLang's server without a prefix cache."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client import JENGA, STRICT, Client
from models.tiny import make_tiny_model
from models.tiny_adapter import make_tiny_adapter

# Its servers are its own: no need to stay with the tests of the shared one.
pytestmark = pytest.mark.xdist_group("lora")

LORA = ("--enable-lora", "--max-lora-rank", "4", "--max-loras-per-batch", "3")
TARGETS = ("--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj")
PROMPT = [random.Random(1).randrange(32, 120) for _ in range(200)]
CACHED = 192  # of a prompt of 200 tokens, whole pages


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model and three adapters; one path, `changing`, is written anew by the tests."""
    folder = tmp_path_factory.mktemp("lora")
    model = make_tiny_model(folder / "model", "olmo3")
    adapters = {
        name: make_tiny_adapter(folder / name, model, seed)
        for seed, name in enumerate(("first", "second", "changing"))
    }
    return {"model": model} | adapters


@pytest.fixture(scope="module")
def lora_flags(paths: dict[str, Path]) -> tuple[str, ...]:
    loaded = [f"{name}={paths[name]}" for name in ("first", "second")]
    return (*LORA, *TARGETS, "--lora-paths", *loaded)


@pytest.fixture(scope="module")
def right(
    start_server: Callable[..., Any], paths: dict[str, Path], lora_flags: tuple[str, ...]
) -> dict[str | None, list[int]]:
    """What stock SGLang answers without a prefix cache, for the model and each adapter;
    `changed` is what `changing` becomes."""
    plain = ("--dtype", "float32", "--random-seed", "0", "--disable-radix-cache")
    started = start_server("--model-path", str(paths["model"]), *plain, *lora_flags, env=STRICT)
    server = Client(started.port, started.process, started.log_path)
    answers: dict[str | None, list[int]] = {
        name: answer(server, name)[0] for name in (None, "first", "second")
    }
    changed = make_tiny_adapter(paths["model"].parent / "changed", paths["model"], seed=9)
    for name, path in (("changing", paths["changing"]), ("changed", changed)):
        load(server, name, path)
        answers[name] = answer(server, name)[0]
        unload(server, name)
    assert len({tuple(tokens) for tokens in answers.values()}) == len(answers)
    server.process.terminate()
    return answers


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., Any],
    paths: dict[str, Path],
    lora_flags: tuple[str, ...],
    right: dict[str | None, list[int]],
) -> Client:
    started = start_server("--model-path", str(paths["model"]), *JENGA, *lora_flags, env=STRICT)
    return Client(started.port, started.process, started.log_path)


@pytest.fixture(autouse=True)
def empty_cache(server: Client) -> None:
    server.flush_cache()


def answer(server: Client, adapter: str | None = None, **fields: Any) -> tuple[list[int], int]:
    """Tokens and how many of the prompt's were cached."""
    said = server.generate(PROMPT, **({"lora_path": adapter} if adapter else {}), **fields)
    return said["output_ids"], said["meta_info"]["cached_tokens"]


def load(server: Client, name: str, path: Path) -> None:
    server.post("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


def unload(server: Client, name: str) -> None:
    server.post("/unload_lora_adapter", {"lora_name": name})


def adapter_id(server: Client, name: str) -> str:
    loaded = json.loads(server.request("GET", "/server_info")[1])["lora_paths"]
    return str(next(adapter["lora_id"] for adapter in loaded if adapter["lora_name"] == name))


def test_everyone_hits_their_own_prefixes_only(
    server: Client, right: dict[str | None, list[int]]
) -> None:
    for hits in (0, CACHED):
        for name in (None, "first", "second"):
            assert answer(server, name) == (right[name], hits), name
    server.assert_clean()


def test_a_key_that_is_an_adapters_id_opens_nothing_of_the_adapters(
    server: Client, right: dict[str | None, list[int]]
) -> None:
    number = adapter_id(server, "first")
    answer(server, "first")
    assert answer(server, extra_key=number) == (right[None], 0)
    assert answer(server, extra_key=number) == (right[None], CACHED)


def test_nor_does_it_with_the_adapters_own_key_before_it(
    server: Client, right: dict[str | None, list[int]]
) -> None:
    number = adapter_id(server, "first")
    answer(server, "first", extra_key="mine")
    assert answer(server, extra_key=f"mine{number}") == (right[None], 0)
    assert answer(server, "first") == (right["first"], 0)
    assert answer(server, "first", extra_key="mine") == (right["first"], CACHED)


def test_an_adapter_loaded_again_under_its_name_and_path_starts_without_prefixes(
    server: Client, paths: dict[str, Path], right: dict[str | None, list[int]]
) -> None:
    load(server, "changing", paths["changing"])
    assert answer(server, "changing") == (right["changing"], 0)
    unload(server, "changing")
    make_tiny_adapter(paths["changing"], paths["model"], seed=9)
    load(server, "changing", paths["changing"])
    assert answer(server, "changing") == (right["changed"], 0)
    assert answer(server, "changing") == (right["changed"], CACHED)
    unload(server, "changing")
    server.assert_clean()


def test_an_adapter_that_was_unloaded_has_no_prefixes_left(
    server: Client, paths: dict[str, Path], right: dict[str | None, list[int]]
) -> None:
    """SGLang loads it again when it is asked for, as another one."""
    load(server, "passing", paths["second"])
    assert answer(server, "passing") == (right["second"], 0)
    unload(server, "passing")
    assert answer(server, "second") == (right["second"], 0)
    assert answer(server) == (right[None], 0)
    assert answer(server, "passing") == (right["second"], 0)
    unload(server, "passing")
    server.assert_clean()


def test_an_unknown_adapter_is_refused_and_the_others_answer(
    server: Client, right: dict[str | None, list[int]]
) -> None:
    """Last, for SGLang logs a traceback of its own: it releases an adapter that it never had."""
    body = {"input_ids": PROMPT, "lora_path": "nobody"}
    status, text = server.request("POST", "/generate", body)
    assert status == 400 and "nobody" in text
    assert answer(server, "first") == (right["first"], 0)


@pytest.mark.long
def test_drafts_are_verified_by_the_adapter_they_are_for(
    start_server: Callable[..., Any],
    paths: dict[str, Path],
    lora_flags: tuple[str, ...],
    right: dict[str | None, list[int]],
) -> None:
    """N-grams come from everybody's answers. Each is asked twice: the second time its own can be
    foreseen."""
    drafting = (
        *("--speculative-algorithm", "NGRAM", "--speculative-ngram-max-bfs-breadth", "1"),
        *("--speculative-num-draft-tokens", "6", "--max-running-requests", "8"),
    )
    started = start_server(
        *("--model-path", str(paths["model"]), *JENGA, *lora_flags, *drafting),
        *("--attention-backend", "jenga_torch"),
    )
    server = Client(started.port, started.process, started.log_path)
    for hits in (0, CACHED):
        for name in (None, "first", "second"):
            assert answer(server, name) == (right[name], hits), name
    said = server.generate(PROMPT, lora_path="first")
    assert said["meta_info"]["spec_verify_ct"] < len(right["first"]) - 1
    server.assert_clean()
