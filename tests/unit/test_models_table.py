"""The table of models in docs/models.md is made of what the tests saw and of `jenga plan`."""

import re
from pathlib import Path

import pytest
from e2e import models_table
from models.released import RELEASED
from models.tiny import ARCHITECTURES


def test_the_page_has_the_table_of_now() -> None:
    page = models_table.PAGE.read_text()
    assert models_table.written(page) == page, "python tests/e2e/models_table.py"


def test_every_model_of_the_tests_is_in_it() -> None:
    """Also those that only long tests run; a twin with dense layers stands for no release."""
    rows = models_table.results()
    assert set(rows) == set(models_table.RELEASES)
    assert set(RELEASED) <= set(rows)
    twins = {"deepseek_v3", "kimi_linear", "phi3", "qwen2"}
    assert set(ARCHITECTURES) - set(rows) == twins


def test_every_row_names_a_test_that_is_there() -> None:
    for name, row in models_table.results().items():
        file, _, test = row["test"].partition("::")
        assert f"def {test.split('[')[0]}(" in (models_table.ROOT / file).read_text(), name


def test_a_row_that_says_otherwise_fails_its_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is written where a file for results is named."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    committed = models_table.results()["llama"]
    state = {"groups": [{"dependency": "full"}]}
    monkeypatch.setenv("PYTEST_CURRENT_TEST", f"{committed['test']} (call)")
    monkeypatch.delenv(models_table.RESULTS_VARIABLE, raising=False)
    models_table.keep("llama", tmp_path, state, committed["compared"])
    state["groups"].append({"dependency": "window 48"})
    with pytest.raises(AssertionError, match="make models"):
        models_table.keep("llama", tmp_path, state, committed["compared"])
    file = tmp_path / "results.json"
    monkeypatch.setenv(models_table.RESULTS_VARIABLE, str(file))
    models_table.keep("llama", tmp_path, state, ["stock"])
    monkeypatch.setattr(models_table, "RESULTS", file)
    assert models_table.results()["llama"]["groups"] == ["full", "window 48"]


def test_capacities_are_those_of_a_plan_by_hand() -> None:
    """Llama-3.1-8B: 128 KiB a token, 40 GiB hold 40 requests of 8k and one page less."""
    rows = re.findall(r"^\| Llama-3.1-8B .*$", models_table.table(), re.MULTILINE)
    cells = rows[0].split(" | ")
    assert cells[2:7] == ["32 full", "128 / 128", "40.0 / 40.0", "10.0 / 10.0", "2.5 / 2.5"]
