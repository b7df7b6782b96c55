"""The serving benchmark: its flags, its arithmetic, and the server that keeps windows wholly."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.serving import loads
from benchmarks.serving.cli import main
from benchmarks.serving.comparison import FULL, QUICK
from benchmarks.serving.report import speedups, table
from benchmarks.serving.whole_memory import KeptWholly, keep_windows_wholly
from jenga_sglang.adapter import discovery
from jenga_sglang.adapter.attention import torch_backend
from jenga_sglang.core.dependency import Full, SlidingWindow, check_legal
from jenga_sglang.core.ranges import Range


@pytest.mark.parametrize("load", [*FULL.loads, *QUICK.loads], ids=lambda load: load.name)
def test_bench_serving_takes_the_flags_of_every_load(
    load: loads.SharedPrefixes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("sglang.benchmark.serving.run_benchmark", seen.append)
    loads._bench_serving(["--base-url=http://127.0.0.1:1", "--model=m", *load.arguments()])
    (given,) = seen
    assert given.dataset_name == "generated-shared-prefix"
    assert (given.gsp_num_groups, given.gsp_prompts_per_group) == (load.groups, load.per_group)
    assert given.gsp_num_turns == load.turns
    assert given.max_concurrency == load.at_once
    assert given.tokenize_prompt == (load.turns == 1)


def test_what_bench_serving_says_before_it_fails_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="bench_serving failed") as caught:
        loads._bench_serving(["--no-such-flag"])
    assert "--no-such-flag" in str(caught.value)


def row(server: str, repeat: int, wall_s: float) -> dict[str, Any]:
    return {
        "model": "gemma",
        "load": "documents",
        "server": server,
        "repeat": repeat,
        "wall_s": wall_s,
        "hit_rate": 0.5,
        "peak_running": 4,
        "answers": 10,
        "same_answers": 9 if server == "jenga" else 10,
    }


def test_ratios_are_taken_round_by_round() -> None:
    runs = [row("stock", 0, 10.0), row("jenga", 0, 5.0), row("jenga", 1, 8.0), row("stock", 1, 20)]
    assert speedups(runs, "gemma", "documents", "jenga", "stock") == [2.0, 2.5]
    assert speedups(runs, "gemma", "documents", "jenga", "whole") == []
    stock, jenga = table(runs).splitlines()[2:]
    assert stock.startswith("| gemma | documents | stock | 15 (10 to 20) |  |")
    assert "| 2.25 (2 to 2.5) |" in jenga
    assert jenga.endswith("| 18 of 20 |")


def test_windows_kept_wholly_are_read_as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_dependency", discovery._dependency)  # undone at the end
    keep_windows_wholly()
    layer = SimpleNamespace(is_cross_attention=False, use_irope=False, sliding_window_size=3)
    kept = discovery._dependency(layer, None)
    assert kept == KeptWholly(SlidingWindow(4))
    assert kept.needed(10) == Full().needed(10)
    check_legal(kept, range(20))
    assert kept.visible(9) == (Range(6, 10),)
    assert torch_backend.visible(kept, range(8, 10))[1].tolist() == [
        [True, True, True, True, False],
        [False, True, True, True, True],
    ]
    full = discovery._dependency(
        SimpleNamespace(is_cross_attention=False, use_irope=False, sliding_window_size=-1), None
    )
    assert full == Full()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_quick_comparison_runs_and_every_server_answers_as_stock(tmp_path: Path) -> None:
    assert main(["run", "--quick", "--json", str(tmp_path / "out.json")]) == 0
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert len(runs) == len(QUICK.loads) * (3 + 2)
    for run in runs:
        assert run["same_answers"] == run["answers"] > 0
        assert run["wall_s"] > 0 and 0 <= run["hit_rate"] < 1
