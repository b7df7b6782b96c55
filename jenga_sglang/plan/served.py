"""The architectures that the installed SGLang has classes for, read from its source.

Importing it would take longer than all of `jenga plan`.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# `EntryClass = One` or `EntryClass = [One, Two]`, at the end of a file of one or several models.
_ENTRY = re.compile(r"^EntryClass\s*=\s*(\[.*?\]|\w+)", re.MULTILINE | re.DOTALL)


@cache
def served_architectures() -> frozenset[str]:
    """Names of model classes; none where SGLang is not installed."""
    spec = find_spec("sglang")
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = (file for folder in folders for file in Path(folder, "srt", "models").glob("[!_]*.py"))
    entries = (entry for file in files for entry in _ENTRY.findall(file.read_text()))
    return frozenset(name for entry in entries for name in re.findall(r"\w+", entry))
