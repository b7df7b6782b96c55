"""The manager benchmark: a run at a tiny size, and its arithmetic in small numbers."""

import json
from pathlib import Path
from typing import Any

import core_inspector as inside
import pytest

from benchmarks.manager.cli import main
from benchmarks.manager.operations import UNITS
from benchmarks.manager.pools import fill, history, make_manager
from benchmarks.manager.report import slope, tables

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small pools of the geometry with two groups and holes."""
    out = tmp_path_factory.mktemp("manager") / "out.json"
    sizes = "--pools 1000 10000 --trees 20 --batches 1 4 --batch 2 --batch-pool 1000 --rounds 3"
    assert main(["run", "--geometries", "gemma", *sizes.split(), "--json", str(out)]) == 0
    return out


def test_every_operation_is_timed_on_a_full_pool(results: Path) -> None:
    points = json.loads(results.read_text())["points"]
    sizes = [(p["sweep"], p["large_pages"], p["batch"]) for p in points]
    assert sizes == [
        ("pool", 1_000, 1),
        ("batch", 1_000, 1),
        ("batch", 1_000, 4),
        ("tree", 10_000, 2),
        ("pool", 10_000, 2),
    ]
    for point in points:
        if point["sweep"] == "pool":
            # A page at a time may find the room that an earlier eviction made ahead.
            assert set(UNITS) - set(point["operations"]) <= {"evict few"}
            for timing in point["operations"].values():
                assert timing["p10_us"] <= timing["median_us"] <= timing["p90_us"]


def test_results_make_a_table_and_a_figure(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(results)]) == 0
    table = capsys.readouterr().out
    assert all(f"| {operation} | {unit} |" in table for operation, unit in UNITS.items())
    assert main(["plot", str(results), "--out", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_pool_is_filled_until_something_is_evicted() -> None:
    """Sixteen pages a history, of which four histories share eight: the tenth is too much."""
    manager = make_manager("llama", 100)
    assert fill(manager, 256, 0, 9) == 9
    assert inside.num_in_tree(manager) == 2 * (8 + 4 * 8) + 16
    assert not manager.counters.evicted
    assert fill(manager, 256, 9, None) == 10
    assert manager.counters.evicted


def test_histories_share_a_half_in_fours() -> None:
    first, third, fifth = (history(number, 64) for number in (0, 2, 4))
    assert (first[:32] == third[:32]).all()
    assert not set(first[32:].tolist()) & set(third.tolist())
    assert not set(first.tolist()) & set(fifth.tolist())


def point(large_pages: int, us: float) -> dict[str, Any]:
    return {
        "geometry": "g",
        "sweep": "pool",
        "large_pages": large_pages,
        "operations": {"match": {"median_us": us, "p10_us": us, "p90_us": us}},
    }


def test_the_slope_is_the_exponent_between_the_pools_that_count() -> None:
    flat = [point(10**n, 7.0) for n in (4, 5, 6, 7)]
    assert slope(flat, "match") == pytest.approx((0.0, 1.0))
    linear = [point(10**n, 10.0**n) for n in (4, 5, 6, 7)]
    assert slope([point(10**3, 99.0), *linear], "match") == pytest.approx((1.0, 1000.0))
    assert slope(flat[:1], "match") is None
    assert "| match | request | 7 (7 to 7) |" in tables(flat)
