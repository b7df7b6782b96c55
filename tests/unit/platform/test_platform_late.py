"""Changes to modules that are not imported yet."""

import importlib
import sys
from pathlib import Path

import pytest

from jenga_sglang.platform.late import after_import


@pytest.fixture
def fresh_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that nobody has imported."""
    name = f"late_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("answer = 1\nfrom_code = answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_change_waits_for_the_import_and_runs_once(fresh_module: str) -> None:
    seen = []

    def change(module: object) -> None:
        seen.append(vars(module)["answer"])
        module.answer = 2  # type: ignore[attr-defined]

    after_import(fresh_module, change)
    assert seen == [] and fresh_module not in sys.modules
    module = importlib.import_module(fresh_module)
    # Behind the module's own code, before whoever imports it goes on.
    assert (module.from_code, module.answer, seen) == (1, 2, [1])
    importlib.reload(module)
    assert (module.answer, seen) == (1, [1])


def test_a_module_that_is_there_is_changed_at_once(fresh_module: str) -> None:
    module = importlib.import_module(fresh_module)
    after_import(fresh_module, lambda module: setattr(module, "answer", 3))
    assert module.answer == 3


def test_several_changes_run_in_order(fresh_module: str) -> None:
    order: list[str] = []
    after_import(fresh_module, lambda module: order.append("first"))
    after_import(fresh_module, lambda module: order.append("second"))
    importlib.import_module(fresh_module)
    assert order == ["first", "second"]


def test_a_module_that_is_nowhere_is_still_missing() -> None:
    after_import("no_such_module_anywhere", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
