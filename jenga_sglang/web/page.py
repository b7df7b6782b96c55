"""The page as text: shown by the server, or with recorded samples as a file of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

_SLOT = "/*SAMPLES*/null"


@cache
def page() -> str:
    """The live page, which asks `/jenga/stats` for what it shows."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def recorded_page(samples: Sequence[dict[str, Any]]) -> str:
    """A page that shows ``samples`` (answers of `/jenga/stats`, oldest first) and asks nobody."""
    # "<" would end the script element inside a string.
    data = json.dumps(list(samples)).replace("<", "\\u003c")
    return page().replace(_SLOT, data, 1)
