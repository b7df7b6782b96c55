"""A browser and a recorded run for the tests of the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium, installed


@pytest.fixture
def browser(tmp_path: Path) -> Chromium:
    """A headless Chromium; skips where none is installed."""
    binary = installed()
    if binary is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    return Chromium(binary, tmp_path / "profile")


@pytest.fixture
def samples() -> list[dict[str, Any]]:
    """Answers of `/jenga/stats` from a run of the demonstration model under load, oldest first;
    the last has its map, and a request waits."""
    recorded: list[dict[str, Any]] = json.loads(
        Path(__file__).with_name("recorded.json").read_text()
    )
    return recorded
