"""`jenga doctor` on environments that are made up; `tests/contract` has the one at hand."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from jenga_sglang import cli, versions
from jenga_sglang.doctor import checks, command
from jenga_sglang.doctor.checks import Check, Diagnosis, HookCheck

PACKAGES = {"sglang": "0.5.23", "torch": "2.14.1", "triton": None}
FITS = HookCheck("sglang.srt.a.fits", True, True, "all", None)
CHANGED = HookCheck("sglang.srt.a.changed", True, False, "<0.5.23", "changed takes (x)")
GONE = HookCheck("sglang.srt.a.gone", False, False, "all", "gone is missing")
GOOD = Check("device", "some device")
BAD = Check("plug-in", "left out by SGLANG_PLUGINS=x", "add jenga to it, or unset it")


def shown(diagnosis: Diagnosis, *, brief: bool = False) -> str:
    text = StringIO()
    command.show(diagnosis, Console(file=text, width=100), brief=brief)
    return text.getvalue()


def run(diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(command, "diagnose", lambda: diagnosis)
    return cli.main(["doctor"])


class TestVerdict:
    def test_all_that_is_needed_ends_with_0(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(Diagnosis(PACKAGES, [GOOD], [FITS]), monkeypatch) == 0
        assert "finds all it needs here" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "amiss",
        [
            Diagnosis(PACKAGES, [GOOD, BAD], [FITS]),
            Diagnosis(PACKAGES, [GOOD], [FITS, CHANGED]),
            Diagnosis(PACKAGES, [GOOD], [GONE, FITS]),
        ],
        ids=["a check", "a signature", "a function"],
    )
    def test_one_thing_amiss_ends_with_1(
        self,
        amiss: Diagnosis,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run(amiss, monkeypatch) == 1
        assert "cannot start here" in capsys.readouterr().out


class TestOutput:
    def test_every_function_is_a_row_with_what_was_found_of_it(self) -> None:
        lines = shown(Diagnosis(PACKAGES, [GOOD], [FITS, CHANGED, GONE])).splitlines()
        assert [line.split() for line in lines if " a." in line] == [
            ["✓", "✓", "all", "a.fits"],
            ["✓", "✗", "<0.5.23", "a.changed"],
            ["✗", "✗", "all", "a.gone"],
        ]

    def test_a_brief_one_has_those_that_do_not_fit(self) -> None:
        text = shown(Diagnosis(PACKAGES, [GOOD], [FITS, CHANGED]), brief=True)
        assert "a.fits" not in text and "changed takes (x)" in text
        assert "1 of 2 functions of SGLang fit" in text

    def test_versions_and_remedies_are_there(self) -> None:
        text = shown(Diagnosis(PACKAGES, [BAD], [FITS]))
        assert re.search(r"^ *sglang +0.5.23$", text, re.M)
        assert re.search(r"^ *triton +not installed$", text, re.M)
        assert "left out by SGLANG_PLUGINS=x" in text and "add jenga to it, or unset it" in text


class TestChecks:
    @pytest.mark.parametrize(
        ("found", "is_good"), [("0.5.22", True), ("0.5.23", True), ("0.5.24", False), (None, False)]
    )
    def test_the_version_of_sglang(self, found: str | None, is_good: bool) -> None:
        check = checks.check_sglang(found)
        assert check.is_good == is_good
        assert is_good or f"pip install 'sglang{versions.SUPPORTED_SGLANG}'" == check.remedy

    def test_without_sglang_nothing_else_is_looked_at(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "installed", lambda package: None)
        diagnosis = checks.diagnose()
        assert [check.found for check in diagnosis.checks] == ["not installed"]
        assert not diagnosis.can_start

    @pytest.mark.parametrize("name", ["check_plugin", "check_device", "all_hooks"])
    def test_what_cannot_be_looked_at_is_amiss(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> Any:
            raise ImportError("cannot import name 'get_memory'\nfrom sglang")

        good: dict[str, Callable[[], Any]] = {
            "check_plugin": lambda: GOOD,
            "check_device": lambda: GOOD,
            "check_attention": lambda: GOOD,
            "all_hooks": lambda: [],
        }
        for check, result in (good | {name: fail}).items():
            monkeypatch.setattr(checks, check, result)
        monkeypatch.setattr(checks, "installed", lambda package: "0.5.23")
        diagnosis = checks.diagnose()
        assert [c.found for c in diagnosis.checks if not c.is_good] == [
            "ImportError: cannot import name 'get_memory'"
        ]
        assert not diagnosis.can_start
