"""Figures in READMEs are those of the result files that lie beside them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import pytest
from e2e.results import table as same_answers_table

from benchmarks.capacity.run import table as capacity_table
from benchmarks.manager.report import tables as manager_tables
from benchmarks.replay.host_times import host_table
from benchmarks.replay.seeds import ablation_table, held_out_table, ratio_table
from benchmarks.serving.report import speedups
from benchmarks.serving.report import table as serving_table

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
REPLAYS = BENCHMARKS / "replay" / "results"
README = (BENCHMARKS / "replay" / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(section: str) -> list[list[str]]:
    """Rows of the first table with geometries, traces and budgets under a heading."""
    text = re.split(r"^###? ", README[README.index(section) :], flags=re.MULTILINE)[1]
    return [cells(line) for line in text.splitlines() if re.match(r"\| \S+, \S+, \d+ GiB ", line)]


def result(row: list[str], backend: str) -> Any:
    geometry, trace, budget = row[0].split(", ")
    found = json.loads((REPLAYS / f"{geometry}-{trace}-{backend}.json").read_text())
    runs = found if isinstance(found, list) else [found]
    assert {run["kv_bytes"] for run in runs} == {int(budget.split()[0]) << 30}
    return found


def shown(run: dict[str, Any]) -> str:
    return f"{run['mid_out_tok_s']:,.0f} ({run['hit_rate']:.2f})"


def stated(cell: str) -> bool:
    """Whether a cell has a figure; the others say that there is none."""
    return bool(re.match(r"[\d,]+ \(", cell))


def results_row(begins: str) -> list[list[float]]:
    """The numbers in each cell of the results page's row that begins so, but for its first cell."""
    (line,) = (line for line in RESULTS.splitlines() if line.startswith(f"| {begins}"))
    return [[float(n) for n in re.findall(r"\d+\.?\d*", cell)] for cell in cells(line)[1:]]


def seed_ratios(geometry: str, kind: str, against: str) -> list[float]:
    """Jenga's middle output rates as multiples of another's, by seed."""
    rates: dict[str, dict[int, float]] = {"jenga": {}, against: {}}
    for row in json.loads((REPLAYS / "seeds.json").read_text()):
        name = "stock" if row["name"].startswith("stock") else row["name"]
        if row["experiment"].startswith(f"{geometry}, {kind}, ") and name in rates:
            rates[name][row["seed"]] = row["mid_out_tok_s"]
    return [rates["jenga"][seed] / rate for seed, rate in rates[against].items()]


def changes(name: str, *identity: str) -> tuple[list[float], list[float]]:
    """By how many per cent Jenga's middle rates, and its whole runs, differ from those of the first
    version (``name``-first.json), run by run."""

    def of(file: str) -> dict[tuple[Any, ...], Any]:
        runs = json.loads((REPLAYS / f"{file}.json").read_text())
        ours = [r for r in runs if "jenga" in (r.get("name", "jenga"), r.get("backend"))]
        return {tuple(run[field] for field in identity): run for run in ours}

    now, first = of(name), of(f"{name}-first")
    assert now.keys() == first.keys()
    middle, whole = (
        [100 * (now[run][rate] / row[rate] - 1) for run, row in first.items()]
        for rate in ("mid_out_tok_s", "out_tok_s")
    )
    return middle, whole


def slower(differences: list[float]) -> list[float]:
    return sorted(round(-difference, 1) for difference in differences if difference < -1)


def mean_change(differences: list[float]) -> float:
    return round(geometric_mean([100 + difference for difference in differences]) - 100, 1)


def test_what_is_slower_than_in_the_first_version_is_told() -> None:
    middle, whole = changes("seeds", "experiment", "seed")
    assert len(middle) == 60 and round(min(whole), 1) == -0.6
    assert "**no run as a whole is slower by more than 0.6 %**" in README
    assert (mean_change(middle), mean_change(whole)) == (5.8, 5.8)
    assert slower(middle) == [1.2, 1.7, 2.1, 6.5]
    there = [w for m, w in zip(middle, whole, strict=True) if m < -1]
    assert sorted(round(change, 1) for change in there) == [-0.1, 0.1, 1.8, 2.3]


def test_what_is_slower_on_other_geometries_is_told() -> None:
    middle, whole = changes("other-geometries", "geometry", "trace", "kv_bytes")
    assert len(middle) == 96
    assert (mean_change(middle), mean_change(whole)) == (4.5, 4.5)
    assert slower(whole) == [1.1]
    assert slower(middle) == [1.0, 1.0, 1.2, 1.3, 2.3, 2.5, 2.6, 4.0]
    alone = [m for m, w in zip(middle, whole, strict=True) if m < -1 <= w]
    assert len(alone) == 8 and "so are eight more" in README


WEIGHED = ("unified", "before", "jenga", "own windows by guess")
WEIGHED += ("before, a step's cost of the geometry",)


def test_what_weighing_with_the_room_of_a_step_is_worth_is_told() -> None:
    traces: dict[str, dict[str, Any]] = {}
    for run in json.loads((REPLAYS / "weighed-with-passing.json").read_text()):
        trace = f"{run['geometry']}, {run['trace']}, seed {run['seed']}"
        traces.setdefault(trace, {})[run["name"]] = run
    told = [cells(line) for line in README.splitlines() if re.match(r"\| .*, .*, seed \d \|", line)]
    assert [trace for trace, *_ in told] == [t for t, runs in traces.items() if "jenga" in runs]
    for trace, *figures, running in told:
        runs = traces[trace]
        assert running == ", ".join(f"{runs[name]['mean_running']:.0f}" for name in WEIGHED[1:3])
        assert figures == [
            f"{runs[name]['mid_out_tok_s']:,.0f} ({runs[name]['out_tok_s']:,.0f})"
            if name in runs
            else "\N{EN DASH}"
            for name in WEIGHED
        ]


def test_what_a_steps_cost_is_worth_is_told() -> None:
    """Every side that was tried against how it was before, on each trace that both ran on."""
    runs = json.loads((REPLAYS / "step-cost.json").read_text())
    of = [tuple(run[name] for name in ("geometry", "trace", "requests", "seed")) for run in runs]
    before = {t: run for t, run in zip(of, runs, strict=True) if run["name"] == "before"}
    sides: dict[str, list[str]] = {}
    for name in dict.fromkeys(run["name"] for run in runs if run["name"] != "before"):
        own = [(run, before[t]) for t, run in zip(of, runs, strict=True) if run["name"] == name]
        sides[name] = [str(len(own))]
        for rate in ("mid_out_tok_s", "out_tok_s"):
            ratios = [run[rate] / other[rate] for run, other in own]
            mean, least, most = (
                f"{100 * (ratio - 1):+.1f}"
                for ratio in (geometric_mean(ratios), min(ratios), max(ratios))
            )
            sides[name].append(f"{mean} ({least} \N{HORIZONTAL ELLIPSIS} {most})")
    text = README[README.index("### What a step costs, and one more request") :]
    _, _, table = text[: text.index("\n### ")].partition("| :-- | --: | --: | --: |\n")
    lines = [cells(line) for line in table.splitlines() if line.startswith("| ")]
    assert {name: figures for name, *figures in lines} == sides


def test_where_everything_fits_rates_and_hits_are_those_of_the_runs() -> None:
    found = rows("### Where everything fits")
    assert len(found) > 4
    for experiment, other, jenga, bound in found:
        geometry, trace, budget = experiment.split(", ")
        *numbers, backend = other.split()
        for name, cell in ((backend, " ".join(numbers)), ("jenga", jenga)):
            file = f"{geometry}-{trace}-{name}-{budget.replace(' ', '')}.json"
            run = json.loads((REPLAYS / file).read_text())
            assert (shown(run), f"{run['hit_bound']:.2f}") == (cell, bound), file


OTHER_GEOMETRIES = {
    "Gemma-3-12B": "gemma3-12b",
    "Gemma-3-4B": "gemma3-4b",
    "Gemma-2-27B": "gemma2-27b",
    "gpt-oss-20b": "gptoss-20b",
    "Olmo-3-7B": "olmo3-7b",
    "Cohere-2-111B": "cohere2-111b",
    "MiMo-V2-Flash": "mimo-flash",
    "Llama-3-70B": "llama3-70b",
}
KINDS = ("docqa", "chat", "mix", "agents", "fewshot", "tree-of-thought")


def test_rows_of_other_geometries_are_those_of_the_runs() -> None:
    """A cell has the ratio to the other backend with the smaller budget, and with the larger."""
    rates: dict[tuple[str, str, str], dict[int, tuple[float, float]]] = {}
    for run in json.loads((REPLAYS / "other-geometries.json").read_text()):
        side = run["backend"] if run["backend"] == "jenga" else "other"
        budgets = rates.setdefault((run["geometry"], run["trace"].split(".")[0], side), {})
        budgets[run["kv_bytes"]] = run["mid_out_tok_s"], run["out_tok_s"]
    for name, geometry in OTHER_GEOMETRIES.items():
        middle, whole, stated = [], [], []
        for kind in KINDS:
            ours, others = (rates[geometry, kind, side] for side in ("jenga", "other"))
            pairs = [(ours[b], others.get(b)) for b in sorted(ours)]
            middle += (ratios := [a[0] / b[0] if b else None for a, b in pairs])
            whole += [a[1] / b[1] for a, b in pairs if b]
            stated.append(", ".join(f"{ratio:.2f}" if ratio else "\N{EN DASH}" for ratio in ratios))
        means = [geometric_mean(filter(None, both)) for both in (middle, whole)]
        stated += [f"{mean:.2f}" for mean in means]
        assert cells(line_of(f"| {name} | "))[2:] == stated


def line_of(begins: str) -> str:
    """The line of the table of other geometries that begins so."""
    text = README[README.index("### Other geometries") :]
    return next(line for line in text.splitlines() if line.startswith(begins))


BOTH = ("unified", "jenga")


def without_overlap(trace: str, side: str, budget: str) -> float:
    """The middle output rate with the same memory: its file may leave the budget out."""
    for end in (f"-{budget.replace(' ', '')}", ""):
        path = REPLAYS / f"{trace}-{side}{end}.json"
        if path.exists():
            run = json.loads(path.read_text())
            assert run["kv_bytes"] == int(budget.split()[0]) << 30
            return float(run["mid_out_tok_s"])
    raise FileNotFoundError(f"{trace}-{side}")


def test_rows_with_the_overlap_schedule_are_those_of_the_runs() -> None:
    found = rows("### With the overlap schedule")
    assert len(found) > 10
    for experiment, *stated in found:
        geometry, trace, budget = experiment.split(", ")
        name = f"{geometry}-{trace}-{{}}-{budget.replace(' ', '')}-overlap.json"
        theirs, ours = (json.loads((REPLAYS / name.format(side)).read_text()) for side in BOTH)
        assert theirs["overlap"] and ours["overlap"], experiment
        ratios = [ours[rate] / theirs[rate] for rate in ("mid_out_tok_s", "out_tok_s")]
        assert stated[:4] == [shown(theirs), shown(ours), *(f"{r:.2f}" for r in ratios)], experiment
        plain = [without_overlap(f"{geometry}-{trace}", side, budget) for side in BOTH]
        assert stated[4] == f"{plain[1] / plain[0]:.2f}", experiment
        waits = [run["longest_wait_s"] for run in (theirs, ours)]
        assert stated[5:] == [f"{wait:.0f}" for wait in waits], experiment
        assert waits[1] < waits[0] + 0.02, experiment
        assert stated[5:] == [f"{run['longest_wait_s']:.0f}" for run in (theirs, ours)], experiment


@pytest.mark.parametrize(
    ("geometry", "begins", "against"),
    [
        ("gemma3-27b", "Gemma-3-27B, relative to SGLang's unified memory", "unified"),
        ("gpt-oss-120b", "gpt-oss-120b, relative to unified memory", "unified"),
        ("qwen3-next-80b", "Qwen3-Next-80B, relative to stock", "stock"),
        ("llama3-8b", "Llama-3-8B, relative to stock", "stock"),
    ],
)
def test_the_results_page_rounds_the_ratios_of_all_traces(
    geometry: str, begins: str, against: str
) -> None:
    kinds = ("docqa", "fewshot", "agents", "mix", "chat", "tree-of-thought")
    for kind, numbers in zip(kinds, results_row(begins), strict=True):
        ratios = seed_ratios(geometry, kind, against)
        assert bool(ratios) == bool(numbers), kind
        if ratios:
            # Numbers near 1 are given more exactly.
            assert numbers[0] == pytest.approx(min(ratios), abs=0.05), kind
            assert numbers[-1] == pytest.approx(max(ratios), abs=0.05), kind
            near_one = [n for n in (min(ratios), max(ratios)) if abs(n - 1) < 0.1]
            stated = [n for n in numbers if abs(n - 1) < 0.1]
            assert stated == pytest.approx(near_one[: len(stated)], abs=0.01), kind


def test_the_results_page_rounds_what_was_measured() -> None:
    capacity = json.loads((BENCHMARKS / "capacity" / "results.json").read_text())
    gemma, llama = capacity["gemma"], capacity["llama"]
    at_once = [row["jenga"]["peak_running"]["median"] for row in (gemma, llama)]
    stock_at_once = gemma["stock"]["peak_running"]["median"]
    (ours, theirs), _, (llamas,) = results_row("prompts of 1,024 tokens at once")
    assert ([ours, llamas], theirs) == (at_once, stock_at_once)

    (speed, retracted), _, (llama_speed,) = results_row("that load, times as fast")
    assert speed == pytest.approx(gemma["ratios"]["jenga"]["speedup"]["median"], abs=0.05)
    assert llama_speed == pytest.approx(llama["ratios"]["jenga"]["speedup"]["median"], abs=0.005)
    assert retracted == gemma["stock"]["retractions"]["median"]

    runs = json.loads((BENCHMARKS / "serving" / "results" / "full.json").read_text())["runs"]
    loads = {run["load"] for run in runs}
    cases = (("gemma", "stock"), ("gemma", "whole"), ("llama", "stock"))
    for (model, against), stated in zip(cases, results_row("`sglang.bench_serving`"), strict=True):
        medians = [median(speedups(runs, model, load, "jenga", against)) for load in loads]
        assert stated == pytest.approx([min(medians), max(medians)], abs=0.05)


@pytest.mark.parametrize(
    ("folder", "results", "table"),
    [
        ("benchmarks/capacity", "results.json", capacity_table),
        ("benchmarks/serving", "results/full.json", lambda found: serving_table(found["runs"])),
        ("benchmarks/replay", "results/seeds.json", ratio_table),
        ("benchmarks/replay", "results/held-out.json", held_out_table),
        ("benchmarks/replay", "results/ablation.json", ablation_table),
        ("benchmarks/replay", "results/ablation-passing.json", ablation_table),
        ("benchmarks/replay", "results/host-times.json", host_table),
        ("tests/e2e", "results.json", same_answers_table),
    ],
    ids=[
        *("capacity", "serving", "seeds", "held out", "ablation", "ablation of passing pages"),
        *("host times", "same answers"),
    ],
)
def test_a_readme_has_every_row_of_its_results(
    folder: str, results: str, table: Callable[[Any], str]
) -> None:
    made = table(json.loads((ROOT / folder / results).read_text()))
    figures = [cells(line) for line in made.splitlines() if re.search(r"\d", line)]
    readme = [cells(line) for line in (ROOT / folder / "README.md").read_text().splitlines()]
    assert figures and not [row for row in figures if row not in readme]


def test_ties_and_what_was_beyond_tolerance_are_told() -> None:
    folder = ROOT / "tests" / "e2e"
    found = json.loads((folder / "results.json").read_text())
    told = [tie.rsplit(" are ")[-1] for row in found["models"].values() for tie in row["ties"]]
    for row in found["beyond_tolerance"]:
        told += [f"{len(row['differences'])} of {row['requests']:,}"]
        told += [f"up to {row['worst_logprob_error']:.1e}"]
    readme = (folder / "README.md").read_text()
    assert len(told) == 5 and not [words for words in told if words not in readme]


def test_baselines_of_replays_are_their_results() -> None:
    baselines = rows("## Baselines")
    assert len(baselines) == 20
    for row in baselines:
        for column, backend in ((1, "stock-hybrid-off"), (2, "stock"), (4, "unified")):
            if stated(row[column]):
                assert row[column] == shown(result(row, backend)), (row[0], backend)
        if stated(row[3]):
            tried = [r for r in result(row, "stock-sweep") if "mid_out_tok_s" in r]
            best = max(round(r["mid_out_tok_s"]) for r in tried)
            assert row[3] in [
                f"{shown(r)} at {r['swa_full_tokens_ratio'] or r['mamba_full_memory_ratio']}"
                for r in tried
                if round(r["mid_out_tok_s"]) == best
            ]


def test_ratios_of_replays_are_of_their_results() -> None:
    figures = rows("## Jenga")
    assert len(figures) == 20
    for row in figures:
        jenga = result(row, "jenga")
        assert row[2] == shown(jenga), row[0]
        backend = re.sub(r".*\) (\w+).*", r"\1", row[1])
        others = result(row, "stock-sweep" if "ratio" in row[1] else backend)
        best = max(
            (r for r in (others if isinstance(others, list) else [others]) if "hit_rate" in r),
            key=lambda r: float(r["mid_out_tok_s"]),
        )
        assert row[1].startswith(shown(best)), row[0]
        assert row[3] == f"{jenga['mid_out_tok_s'] / best['mid_out_tok_s']:.2f}", row[0]


def test_the_results_page_tells_of_losses_on_unseen_traces() -> None:
    table = RESULTS[RESULTS.index("| load | Jenga") :].split("\n\n")[0]
    found = [cells(line) for line in table.splitlines()[2:]]
    assert len(found) == 2
    for row in found:
        ours, best = result(row, "jenga"), result(row, row[2].split()[-1])
        ratio = ours["mid_out_tok_s"] / best["mid_out_tok_s"]
        assert row[1:] == [shown(ours), f"{shown(best)} {best['backend']}", f"{ratio:.2f}"]


def test_two_traces_at_several_budgets_are_their_results() -> None:
    found = rows("### Two traces that came with losses")
    assert len(found) == 8
    for experiment, *figures in found:
        geometry, trace, budget = experiment.split(", ")
        others = f"-{budget.replace(' ', '')}.json"
        runs = []
        for backend in ("unified", "jenga"):
            name = f"{geometry}-{trace}-{backend}"
            file = REPLAYS / (name + others)
            runs.append(
                json.loads((file if file.exists() else REPLAYS / f"{name}.json").read_text())
            )
        assert {run["kv_bytes"] for run in runs} == {int(budget.split()[0]) << 30}
        unified, jenga = runs
        ratios = [jenga[rate] / unified[rate] for rate in ("mid_out_tok_s", "out_tok_s")]
        assert figures == [shown(unified), shown(jenga), *(f"{ratio:.2f}" for ratio in ratios)]


@pytest.mark.parametrize(
    ("geometry", "aim", "more", "told"),
    [
        ("gemma3-27b", 1.10, "18GiB", "depend on {0:.1f} GiB, without any gap"),
        ("gpt-oss-120b", 1.05, "4400MiB", "{0:.2f} GiB are depended on: {1:.2f} of 4 GiB"),
    ],
)
def test_what_chat_would_need_for_its_aim_is_told(
    geometry: str, aim: float, more: str, told: str
) -> None:
    names = ("unified", "jenga", f"jenga-{more}")
    unified, now, enough = (
        json.loads((REPLAYS / f"{geometry}-chat-{name}.json").read_text()) for name in names
    )
    assert now["mid_out_tok_s"] < aim * unified["mid_out_tok_s"] <= enough["mid_out_tok_s"]
    useful_bytes = enough["mid_useful_frac"] * enough["kv_bytes"]
    assert told.format(useful_bytes / (1 << 30), useful_bytes / now["kv_bytes"]) in README
    assert f"{now['mid_useful_frac']:.2f}" in README[README.index("**Chat** is full") :][:1500]


def test_the_managers_times_are_its_results() -> None:
    folder = BENCHMARKS / "manager"
    times: dict[str, dict[str, list[str]]] = {}
    header: list[str] = []
    made = manager_tables(json.loads((folder / "results/full.json").read_text())["points"])
    for line in made.splitlines():
        row = cells(line)
        if "µs per" in row[0]:
            header, own = row, times.setdefault(row[0].split(":")[0], {})
        elif "exponent" in header and len(row) == len(header):
            ends = (header.index(size) for size in ("10,000", "10,000,000"))
            own[row[0]] = [*(row[end].split(" ")[0] for end in ends), row[-1]]
    readme = (folder / "README.md").read_text().splitlines()
    figures = {row[0]: row[2:] for row in map(cells, readme) if len(row) == 11}
    operations = [name for name in figures if name in times["gemma"]]
    assert len(operations) == 11
    for name in operations:
        assert figures[name] == [cell for own in times.values() for cell in own[name]], name
