"""`make demo`, whole: every program on two real servers of equal bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.programs import PROGRAMS

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_both_servers_answer_alike_and_jenga_holds_less(demo_model: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "examples.demo", "--model-path", str(demo_model)]
    command += ["--dtype", "float32", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    facts = json.loads(figures.read_text())
    assert set(facts["same_outputs"]) == set(PROGRAMS)
    assert all(facts["same_outputs"].values())
    for backend in ("default", "jenga"):
        assert sum(p["cached_tokens"] for p in facts["programs"][backend].values()) > 0
    window = facts["groups"]["window 64"]
    assert 0 < window["jenga_used_bytes"] < window["stock_used_bytes"]
    for name in facts["same_outputs"]:
        assert f"│ {name}" in done.stdout
