"""Changes to modules of SGLang that are not imported yet when the platform starts.

Importing them there would be slow for processes that never need them, and circular for some.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Change = Callable[[Any], None]


def after_import(name: str, change: Change) -> None:
    """Run ``change(module)`` once: now if the module is imported, else right after it is."""
    if name in sys.modules:
        change(sys.modules[name])
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _waiting.setdefault(name, []).append(change)


_waiting: dict[str, list[Change]] = {}


class _Finder(MetaPathFinder):
    """Finds what `_waiting` names where Python would, and runs the changes behind its code."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _waiting else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            for change in _waiting.pop(name, ()):
                change(module)

        spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec
