"""`jenga doctor` in the environment at hand, which the suite needs to be a good one."""

import pytest

from jenga_sglang import command_line
from jenga_sglang.doctor import checks
from jenga_sglang.hook import AFTER, Hook


@pytest.fixture(scope="module")
def diagnosis() -> checks.Diagnosis:
    return checks.diagnose()


def test_a_start_would_find_all_it_needs(diagnosis: checks.Diagnosis) -> None:
    assert diagnosis.can_start, (diagnosis.checks, diagnosis.hooks)


def test_every_hooked_function_is_looked_at(diagnosis: checks.Diagnosis) -> None:
    assert [hook.target for hook in diagnosis.hooks] == [h.target for h in checks.all_hooks()]
    assert len(diagnosis.hooks) > 25
    assert {hook.record for hook in diagnosis.hooks} <= {"<0.5.23", "all"}


def test_a_variable_that_leaves_the_plug_in_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    check = checks.check_plugin()
    assert not check.is_good and check.found == "left out by SGLANG_PLUGINS=another"


def test_a_function_that_is_gone_and_one_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    (known, _) = command_line.command_line_hooks()
    gone = Hook("sglang.srt.server_args.no_such_function", (), print, AFTER)
    changed = Hook(known.target, ("other",), print, AFTER)
    found = [checks.check_hook(hook) for hook in (known, changed, gone)]
    assert [(hook.is_found, hook.fits) for hook in found] == [
        (True, True),
        (True, False),
        (False, False),
    ]
