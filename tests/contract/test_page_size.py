"""The page size of a server: the user's, or else the one that suits the model's layer groups."""

import json
from pathlib import Path
from typing import Any

import pytest
from models.tiny import ARCHITECTURES
from resolved import CONFIGS, resolve, write_config

from jenga_sglang import cli
from jenga_sglang.settings import name_of

# Transformers cannot read these as they are.
UNREADABLE = {"exaone-4-32b", "ministral-8b", "step-3.5-flash"}
NAMES = sorted({path.stem for path in CONFIGS.glob("*.json")} - UNREADABLE)
ONE_FULL_GROUP = {
    *(
        "deepseek-v3",
        "glm-4.5-air",
        "glm-4.7-flash",
        "llama-3.1-8b",
        "minimax-m2",
        "mistral-7b-v0.1",
    ),
    *("mixtral-8x7b", "phi-3-mini-4k", "phi-4-mini", "qwen3-30b-a3b", "seed-oss-36b", "smollm3-3b"),
}
LLAMA, GEMMA, MISTRAL = "llama-3.1-8b", "gemma-3-27b", "mistral-7b-v0.1"
LARGE_ROWS = {"gemma-2-27b", "gemma-3-27b", "gemma-4-31b", "olmo-3-7b"}  # above 256 KiB a token
GIVEN = (1, 4, 8, 16, 32, 64, 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs as they were released, as Transformers writes them, and one that nobody knows."""
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES:
        write_config(folder, name)
    for name, kind in ARCHITECTURES.items():
        config = kind.make_config()
        config.architectures = [f"{kind.model}ForCausalLM"]
        config.save_pretrained(folder / name)
    unknown = json.loads((folder / LLAMA / "config.json").read_text()) | {"local_layer_ids": [0]}
    (folder / "unknown").mkdir()
    (folder / "unknown" / "config.json").write_text(json.dumps(unknown))
    return folder


@pytest.fixture(scope="module")
def sizes(folder: Path) -> dict[str, Any]:
    """Tokens a page of every server of these tests, or why it is refused, resolved in one
    process."""
    cases: dict[str, dict[str, Any]] = {
        name: {"model_path": name} for name in (*NAMES, *ARCHITECTURES, "unknown")
    }
    for size in GIVEN:
        for name in (LLAMA, GEMMA):
            cases[f"{name} {size}"] = {"model_path": name, "page_size": size}
    windows = {"model_path": MISTRAL, "jenga_window": "config"}
    cases |= {
        "windows": windows,
        "windows never outgrown": windows | {"context_length": 4096},
        "short gemma": {"model_path": GEMMA, "context_length": 1024},
        "two ranks": {"model_path": GEMMA, "tp_size": 2},
        "xqa": {"model_path": LLAMA, "env": {name_of("decode_kernel"): "xqa"}},
        "xqa 8": {"model_path": LLAMA, "page_size": 8},
        "fa2": {"model_path": LLAMA, "env": {name_of("decode_kernel"): "fa2"}},
        "odd chunk": {"model_path": GEMMA, "chunked_prefill_size": 100},
        "odd chunk of small pages": {
            "model_path": GEMMA,
            "chunked_prefill_size": 100,
            "page_size": 4,
        },
        "no chunks": {"model_path": GEMMA, "chunked_prefill_size": -1},
        "no page": {"model_path": GEMMA, "max_total_tokens": 7},
        "one page": {"model_path": GEMMA, "max_total_tokens": 8},
    }
    found = resolve(
        [case | {"model_path": str(folder / case["model_path"])} for case in cases.values()]
    )
    return {
        name: resolved.get("page_size", resolved.get("refused"))
        for name, resolved in zip(cases, found, strict=True)
    }


def planned(model: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    """The page size that `jenga plan` shows."""
    assert cli.main(["plan", str(model), "--kv-bytes", "40GiB", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)["page_size_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_one_full_group_and_large_rows_have_smaller_pages_and_the_plan_says_so(
    name: str, sizes: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizes[name] == (8 if name in ONE_FULL_GROUP | LARGE_ROWS else 16)
    assert sizes[name] == planned(folder / name, capsys)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_with_every_default_spelled_out_says_the_same(
    name: str, sizes: dict[str, Any]
) -> None:
    kind = ARCHITECTURES[name]
    is_plain = kind.num_groups == 1 and set(kind.layers) == {"f"}
    assert sizes[name] == (8 if is_plain else 16)


@pytest.mark.parametrize("name", [LLAMA, GEMMA])
def test_the_users_page_size_stands(name: str, sizes: dict[str, Any]) -> None:
    assert [sizes[f"{name} {size}"] for size in GIVEN] == list(GIVEN)


def test_windows_count_as_the_server_applies_them(
    sizes: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A window that layers really have is a group of its own; one that no request outgrows is
    full attention."""
    assert sizes["windows"] == 16
    assert sizes["windows never outgrown"] == sizes["short gemma"] == 8
    windows = ("--jenga-window", "config")
    assert planned(folder / MISTRAL, capsys, *windows) == 16
    assert planned(folder / MISTRAL, capsys, *windows, "--max-length", "4096") == 8
    assert planned(folder / GEMMA, capsys, "--max-length", "1024") == 8


def test_rows_count_as_a_rank_has_them(
    sizes: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (sizes[GEMMA], sizes["two ranks"]) == (8, 16)
    assert planned(folder / GEMMA, capsys, "--tp", "2") == 16


def test_pages_are_as_large_as_the_decode_kernel_needs_them(sizes: dict[str, Any]) -> None:
    assert (sizes["xqa"], sizes["xqa 8"], sizes["fa2"]) == (16, 8, 8)


def test_a_config_that_cannot_be_read_gives_the_usual_pages(sizes: dict[str, Any]) -> None:
    assert sizes["unknown"] == 16


def test_a_chunk_that_ends_inside_a_page_is_refused_in_one_line(sizes: dict[str, Any]) -> None:
    line = sizes["odd chunk"]
    assert line.startswith("jenga-sglang: --chunked-prefill-size 100: ") and "\n" not in line
    assert "8 tokens" in line and "choose 96 or 104" in line
    assert (sizes["odd chunk of small pages"], sizes["no chunks"]) == (4, 8)


def test_a_pool_of_no_page_is_refused_in_one_line(sizes: dict[str, Any]) -> None:
    line = sizes["no page"]
    assert line == "jenga-sglang: --max-total-tokens 7: is less than a page, which has 8 here."
    assert sizes["one page"] == 8
