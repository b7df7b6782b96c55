"""Environment variables: each in one place, checked with the command line, and documented."""

import ast
import json
import logging
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jenga_sglang import flags, layer_flags, settings
from jenga_sglang.cli import main
from jenga_sglang.core.policy import CachePolicy
from jenga_sglang.layer_flags import Keep, KvDtypes
from jenga_sglang.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "settings.md"
SOURCES = ("jenga_sglang", "flashinfer_ext", "examples", "benchmarks")
MEANINGLESS = [
    *(("JENGA_WATCHDOG_SECONDS", text, "0 or more") for text in ("x", "soon", "-1", "inf", "nan")),
    ("JENGA_STORAGE_SECONDS", "never", "0 or more"),
    ("JENGA_LOG_DIGEST", "yes", "choose one of 0, 1"),
    ("JENGA_POISON_FREED", "true", "choose one of 0, 1"),
    ("JENGA_LAYOUT", "exact_lcm", "choose one of planned, exact-lcm"),
    ("JENGA_POLICIES", "hold_hit=off", "known: prompt_slack_tokens, "),
    ("JENGA_POLICIES", "step_cost_tokens=few", "write name=number"),
    ("JENGA_PREFILL_KERNEL", "fa4", "choose one of auto, fa2, fa3"),
    ("JENGA_DECODE_KERNEL", "fa3", "choose one of fa2, xqa"),
    ("JENGA_FLASHINFER_MODULES", "/no/such/folder", "leave it out"),
    ("JENGA_CPU_PLATFORM", "no", "choose one of 0, 1"),
]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in settings.variables().values():
        monkeypatch.delenv(variable.name, raising=False)


def start() -> bool:
    """What happens of a server's start while its command line is checked."""
    return flags.apply_flag({"memory_backend": "jenga", "attention_backend": "jenga_torch"})


class TestValues:
    @pytest.mark.parametrize(("name", "text", "way_out"), MEANINGLESS)
    def test_one_that_means_nothing_ends_the_start_in_one_line(
        self, name: str, text: str, way_out: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as refused:
            start()
        line = str(refused.value)
        assert line.startswith(f"jenga-sglang: {name}={text}: ") and way_out in line
        assert "\n" not in line

    def test_every_variable_but_free_text_can_mean_nothing(self) -> None:
        free = {"JENGA_API_KEY"}
        of_processes = {v.name for v in settings.variables().values() if v.reader == "processes"}
        known = {variable.name for variable in settings.variables().values()}
        assert {name for name, _, _ in MEANINGLESS} == known - free - of_processes

    def test_none_and_empty_are_the_default(self) -> None:
        nothing = Settings.read({})
        assert nothing == Settings.read({v.name: "" for v in settings.variables().values()})
        assert (nothing.watchdog_seconds, nothing.layout) == (30.0, "planned")
        assert nothing.policies == CachePolicy() and nothing.log_digest is False
        assert nothing.flashinfer_modules is None and nothing.api_key is None

    def test_those_given_are_read(self, tmp_path: Path) -> None:
        given = {
            "JENGA_STORAGE_SECONDS": "5",
            "JENGA_WATCHDOG_SECONDS": "0",
            "JENGA_POLICIES": "hold_hits=off,step_cost_tokens=7",
            "JENGA_LAYOUT": "exact-lcm",
            "JENGA_POISON_FREED": "1",
            "JENGA_LOG_DIGEST": "1",
            "JENGA_PREFILL_KERNEL": "fa3",
            "JENGA_DECODE_KERNEL": "xqa",
            "JENGA_FLASHINFER_MODULES": str(tmp_path),
            "JENGA_CPU_PLATFORM": "0",
            "JENGA_API_KEY": "secret",
            "JENGA_SGLANG_ACTIVE": "1",
            "JENGA_WINDOW": "config",
            "JENGA_KV_DTYPE": "full=fp8_e4m3",
            "JENGA_KEEP": "4+64",
        }
        assert given.keys() == {v.name for v in settings.variables().values()}
        policies = CachePolicy(hold_hits=False, step_cost_tokens=7)
        values = (0.0, 5.0, policies, "exact-lcm", True, True, "fa3", "xqa", tmp_path, False)
        of_layers = (KvDtypes.parse("full=fp8_e4m3"), Keep.parse("4+64"))
        assert Settings.read(given) == Settings(*values, "secret", True, "config", *of_layers)

    def test_the_environment_is_read_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert settings.current().decode_kernel == "fa2"
        monkeypatch.setenv("JENGA_DECODE_KERNEL", "xqa")
        assert settings.current().decode_kernel == "xqa"
        assert settings.current() is settings.current(), "parsed once"

    def test_what_is_handed_down_is_read_by_who_gets_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JENGA_WINDOW", "")
        settings.hand_down(window="config")
        assert settings.current().window == "config" and flags.follows_config_windows()

    def test_without_the_flag_none_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, text, _ in MEANINGLESS:
            monkeypatch.setenv(name, text)
        assert not flags.is_active() and not flags.apply_flag({})
        with pytest.raises(SystemExit, match="0"):
            main(["plan", "--help"])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("JENGA_WATCHDOG_SECOND", "did you mean JENGA_WATCHDOG_SECONDS?"),
            ("JENGA_POLICY", "did you mean JENGA_POLICIES?"),
            ("JENGA_PORT_8000_TCP_ADDR", "`jenga settings` lists what does"),
        ],
    )
    def test_one_that_means_nothing_is_a_warning(
        self, name: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        monkeypatch.setenv("JENGA_WINDOW", "")
        monkeypatch.setenv(name, "x")
        with caplog.at_level(logging.WARNING):
            assert start()
        (line,) = [r.getMessage() for r in caplog.records if name in r.getMessage()]
        assert said in line

    def test_no_other_file_names_or_reads_one(self) -> None:
        found = [
            str(path)
            for folder in SOURCES
            for path in sorted((ROOT / folder).rglob("*.py"))
            if re.search(r"[\"']JENGA_", path.read_text())
        ]
        # Two below the package write one down, for the user or for a process of theirs.
        writing = ("benchmarks/kernels/bare.py", "flashinfer_ext/aot.py")
        expected = ("jenga_sglang/settings.py", *writing)
        assert sorted(found) == sorted(str(ROOT / file) for file in expected)

    def test_the_core_does_not_know_of_an_environment(self) -> None:
        for path in (ROOT / "jenga_sglang" / "core").rglob("*.py"):
            assert "os" not in imports(path), path

    def test_the_settings_stand_below_everything_else(self) -> None:
        """What every part may import can import none of them."""

        def ours(module: ModuleType) -> set[str]:
            return {name for name in imports(Path(str(module.__file__))) if "jenga" in name}

        below = {"jenga_sglang.core.policy", "jenga_sglang.layer_flags", "jenga_sglang.refusal"}
        assert ours(settings) == below
        assert ours(layer_flags) == {"jenga_sglang.core.dependency", "jenga_sglang.refusal"}
        refusal = ROOT / "jenga_sglang" / "refusal.py"
        assert set(imports(refusal)) == {"__future__"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


class TestCommand:
    def test_it_lists_every_variable_with_its_value(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("JENGA_WATCHDOG_SECONDS", "7.5")
        monkeypatch.setenv("JENGA_API_KEY", "secret")
        assert main(["settings", "--json"]) == 0
        text = capsys.readouterr().out
        rows = {row["variable"]: row for row in json.loads(text)}
        assert [*rows] == [v.name for v in settings.variables().values()]
        watchdog = rows["JENGA_WATCHDOG_SECONDS"]
        assert (watchdog["value"], watchdog["default"]) == ("7.5", "30")
        assert rows["JENGA_API_KEY"]["value"] == "(set)" and "secret" not in text
        assert main(["settings"]) == 0
        table = capsys.readouterr().out
        assert "secret" not in table
        for name, row in rows.items():
            (line,) = [line for line in table.splitlines() if line.startswith(name + " ")]
            assert row["value"] in line and row["meaning"][:20] in line

    def test_a_value_that_means_nothing_is_refused_there_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JENGA_LAYOUT", "mine")
        with pytest.raises(SystemExit, match="JENGA_LAYOUT=mine"):
            main(["settings"])


def table_rows(first: str) -> list[list[str]]:
    """The rows of the document's table whose first column is headed ``first``, without marks."""
    after = DOCUMENT.read_text().split(f"| {first} |", 1)[1].split("\n\n", 1)[0]
    lines = after.splitlines()[2:]
    return [[c.strip().replace("`", "") for c in line.strip("|").split(" | ")] for line in lines]


class TestDocument:
    def test_it_has_every_variable(self) -> None:
        expected = [
            [v.name, v.default, v.reader, v.meaning.replace("`", "")]
            for v in settings.variables().values()
        ]
        assert table_rows("variable") == expected

    def test_flags_are_listed_with_their_choices(self) -> None:
        parser = ArgumentParser(add_help=False)
        flags.add_flag(parser)
        page = (ROOT / "docs" / "flags.md").read_text()
        for action in parser._actions:
            choices = f"{{{','.join(action.choices or ())}}}"
            assert f"| `{action.option_strings[0]} {action.metavar or choices}` |" in page

    def test_no_document_names_a_variable_that_is_none(self) -> None:
        known = {variable.name for variable in settings.variables().values()} | {"JENGA_PORT"}
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            assert set(re.findall(r"\bJENGA_[A-Z_]+\b", path.read_text())) <= known, path
