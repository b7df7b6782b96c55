"""`jenga plan --exact`: what the program that builds a model says becomes the layers of a plan."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from plan_configs import CONFIGS, load

from jenga_sglang.cli import main
from jenga_sglang.core.dependency import Full, LastState, SlidingWindow
from jenga_sglang.plan import exact
from jenga_sglang.plan.fields import ConfigError
from jenga_sglang.plan.model import Layer, Model, ReadOptions
from jenga_sglang.plan.notes import EXACT, notes
from jenga_sglang.plan.report import make_report

LLAMA, FALCON = "llama-3.1-8b", "falcon-h1-7b"


def group(*layers: int, dependency: list[Any], **sizes: Any) -> dict[str, Any]:
    none = {"k_bytes": 0, "v_bytes": 0, "state_bytes": []}
    return {"layers": layers, "dependency": dependency, **none, **sizes}


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the program; the command that it was asked with comes back."""
    asked: list[list[str]] = []

    def says(found: Any, status: int = 0, errors: str = "") -> list[list[str]]:
        def run(command: list[str], **how: Any) -> Any:
            asked.append(command)
            assert how["env"]["CUDA_VISIBLE_DEVICES"] == ""
            asked.append([Path(command[3]).joinpath("config.json").read_text()])
            return subprocess.CompletedProcess(command, status, json.dumps(found), errors)

        monkeypatch.setattr(subprocess, "run", run)
        return asked

    return says


def found_in(name: str, **options: Any) -> Model:
    given = ReadOptions(**options)
    return exact.as_a_server_finds_it(load(name), CONFIGS / f"{name}.json", given)


def test_the_layers_are_those_that_were_found(says: Any) -> None:
    rows = {"k_bytes": 100, "v_bytes": 60}
    asked = says(
        [
            group(1, 3, dependency=["SlidingWindow", 9, 0], **rows),
            group(2, dependency=["Full"], **rows),
        ]
    )
    model = found_in(LLAMA, window="config")
    assert model.is_exact
    assert model.layers == (
        Layer(1, SlidingWindow(9), 100, 60),
        Layer(2, Full(), 100, 60),
        Layer(3, SlidingWindow(9), 100, 60),
    )
    assert notes(make_report(model, 1 << 30, [1024]))[-1] == EXACT
    command, config = asked
    assert command[4:] == [
        *("--kv-dtype", "bfloat16", "--jenga-window", "config"),
        *("--max-length", "131072"),
    ]
    assert json.loads(config[0])["architectures"] == ["LlamaForCausalLM"]


def test_a_layer_may_have_rows_and_a_state(says: Any) -> None:
    rows = {"k_bytes": 100, "v_bytes": 60}
    says(
        [
            group(0, 1, dependency=["Full"], **rows),
            group(0, 1, dependency=["LastState"], state_bytes=[8, 40]),
        ]
    )
    layers = found_in(FALCON).layers
    assert [layer.dependency for layer in layers] == [Full(), LastState()] * 2


def test_layers_that_share_stay_those_of_the_config(says: Any) -> None:
    """A server's groups do not name them: they keep nothing."""
    says([group(*range(20), dependency=["Full"], k_bytes=1, v_bytes=1)])
    model = found_in("gemma-3n-e4b")
    assert [layer.index for layer in model.layers if layer.shares] == list(range(20, 35))
    assert len(model.layers) == 35


def test_a_server_would_refuse_the_model(says: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = "jenga-sglang: --memory-backend jenga: X has lightning attention; leave it out."
    says(None, 1, f"loading\n{line}\n")
    arguments = ["plan", str(CONFIGS / f"{LLAMA}.json"), "--kv-bytes", "1GiB", "--exact"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said == f"jenga: --exact: {line.removeprefix('jenga-sglang: ')}\n"
    assert main([*arguments, "--draft", str(CONFIGS / f"{LLAMA}.json")]) == 2
    assert "leave out --draft" in capsys.readouterr().err


def test_what_went_wrong_is_the_last_line(says: Any) -> None:
    says(None, 1, "Traceback\n  somewhere\nKeyError: 'rope'\n\n")
    with pytest.raises(ConfigError, match=r"^--exact: KeyError: 'rope'$"):
        found_in(LLAMA)


@pytest.mark.parametrize("options", [{"tp": 2}, {"state_dtype": "float32"}, {"image_tokens": 9}])
def test_what_one_rank_without_requests_does_not_know(options: Any, says: Any) -> None:
    says([])
    with pytest.raises(ConfigError, match="leave out --tp, --state-dtype, --image-tokens"):
        found_in(LLAMA, **options)


def test_what_an_encoder_makes_is_not_known(says: Any) -> None:
    says([group(3, dependency=["CrossAttention"], k_bytes=1, v_bytes=1)])
    with pytest.raises(ConfigError, match="what an encoder makes differs"):
        found_in("llama-3.2-11b-vision")
