"""The same comparison on several traces of each kind: how far does one trace's ratio carry?

Seed 1 is the trace in `data/`, any other a new one of its kind.
"""

import json
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.replay.generators import GENERATORS
from benchmarks.replay.report import markdown
from benchmarks.replay.spec import RATIOS
from benchmarks.replay.sweep import run_apart
from benchmarks.replay.trace import save_trace

DATA = Path(__file__).parent / "data"

Row = dict[str, Any]
# What is run, by name, and the flags that say so.
Sides = Mapping[str, Sequence[str]]

# Figures that a row keeps. Host times are not among them: rows may be made side by side.
KEPT = (
    *("mid_out_tok_s", "mid_emitted_tok_s", "out_tok_s", "hit_rate", "hit_bound"),
    *("mean_running", "retractions", "ttft_p50_s", "ttft_p99_s", "longest_wait_s"),
)


@dataclass(frozen=True)
class Experiment:
    """A kind of trace on a geometry. ``ratio`` is stock's best in a sweep of the trace in `data/`;
    None for a single group, which stock has no ratio for and unified memory refuses.
    ``has_states``: it is one of states to rows."""

    geometry: str
    kind: str
    requests: int
    kv_bytes: str
    ratio: float | None
    has_states: bool = False

    @property
    def title(self) -> str:
        return f"{self.geometry}, {self.kind}, {self.kv_bytes}"

    def flags(self, trace: Path) -> list[str]:
        """What every `run` on this geometry and budget has in common."""
        geometry = next(DATA.rglob(f"{self.geometry}.json"))
        return [f"--geometry={geometry}", f"--trace={trace}", f"--kv-bytes={self.kv_bytes}"]

    def backends(self) -> Sides:
        if self.ratio is None:
            return {"stock": ["--backend=stock"], "jenga": ["--backend=jenga"]}
        flag = RATIOS[self.has_states].replace("_", "-")
        return {
            f"stock {self.ratio:g}": ["--backend=stock", f"--{flag}={self.ratio}"],
            "unified": ["--backend=unified"],
            "jenga": ["--backend=jenga"],
        }

    def against_unified(self) -> Sides:
        """The two that share memory among groups, without a ratio to choose."""
        return {"unified": ["--backend=unified"], "jenga": ["--backend=jenga"]}

    def policies(self, only: Collection[str] = ()) -> Sides:
        """Jenga as it is, without each of its policies, and without all that predict; of these
        ``only`` the named ones, where any are."""
        from jenga_sglang.core.policy import CachePolicy

        names = [f.name for f in fields(CachePolicy) if self.has_states or f.name not in OF_STATES]
        without = {name: (name,) for name in names} | {PLAIN_LRU: PREDICTING}
        without = {name: off for name, off in without.items() if not only or name in only}
        return {"jenga": ["--backend=jenga"]} | {
            side: ["--backend=jenga", *(f"--jenga-policy={name}=off" for name in off)]
            for side, off in without.items()
        }


# Policies that change nothing without recurrent states.
OF_STATES = (
    *("state_share_percent", "answer_state_tokens"),
    *("snapshot_gain_percent", "snapshot_room"),
)

# What is left of the order of eviction without the policies that guess what will be asked again.
PLAIN_LRU = "plain LRU"
PREDICTING = (
    *("waiting_prefixes", "step_cost_tokens"),
    *("keep_branches", "hold_hits", "prompt_slack_tokens"),
)

EXPERIMENTS = (
    Experiment("gemma3-27b", "docqa", 400, "40GiB", 0.1),
    Experiment("gemma3-27b", "mix", 800, "32GiB", 0.4),
    Experiment("gemma3-27b", "chat", 1_500, "16GiB", 0.6),
    Experiment("gemma3-27b", "agents", 400, "16GiB", 0.4),
    Experiment("gemma3-27b", "fewshot", 800, "16GiB", 0.4),
    Experiment("gemma3-27b", "tree-of-thought", 600, "16GiB", 0.8),
    Experiment("gpt-oss-120b", "docqa", 400, "10GiB", 0.1),
    Experiment("gpt-oss-120b", "mix", 800, "4GiB", 0.4),
    Experiment("gpt-oss-120b", "chat", 1_500, "4GiB", 0.4),
    Experiment("gpt-oss-120b", "agents", 400, "4GiB", 0.2),
    Experiment("gpt-oss-120b", "fewshot", 800, "4GiB", 0.2),
    Experiment("gpt-oss-120b", "tree-of-thought", 600, "4GiB", 0.8),
    Experiment("llama3-8b", "docqa", 400, "16GiB", None),
    Experiment("llama3-8b", "chat", 1_500, "8GiB", None),
    Experiment("qwen3-next-80b", "docqa", 400, "10GiB", 0.9, has_states=True),
    Experiment("qwen3-next-80b", "mix", 800, "8GiB", 3.6, has_states=True),
    Experiment("qwen3-next-80b", "chat", 1_500, "4GiB", 3.6, has_states=True),
    Experiment("qwen3-next-80b", "agents", 400, "4GiB", 0.9, has_states=True),
    Experiment("qwen3-next-80b", "fewshot", 800, "4GiB", 3.6, has_states=True),
    Experiment("qwen3-next-80b", "tree-of-thought", 600, "4GiB", 7.2, has_states=True),
)

# Seeds that no choice was made by, and nothing but the table of them is. Shorter traces than above.
HELD_OUT_SEEDS = tuple(range(31, 41))
HELD_OUT = (
    Experiment("jamba-1.5-mini", "docqa", 240, "4GiB", 0.1, has_states=True),
    Experiment("gemma3-27b", "fewshot", 400, "16GiB", 0.4),
    Experiment("gemma3-27b", "agents", 150, "16GiB", 0.4),
    Experiment("gemma3-27b", "tree-of-thought", 200, "16GiB", 0.8),
    Experiment("qwen3-next-80b", "fewshot", 400, "4GiB", 3.6, has_states=True),
    Experiment("gemma3-27b", "mix", 250, "32GiB", 0.4),
    Experiment("gemma3-27b", "chat", 400, "16GiB", 0.6),
)


@dataclass(frozen=True)
class _Job:
    experiment: Experiment
    seed: int
    name: str
    flags: Sequence[str]

    @property
    def key(self) -> tuple[str, int, str]:
        return self.experiment.title, self.seed, self.name


def run_seeds(
    seeds: Sequence[int],
    chosen: Sequence[Experiment],
    sides: Callable[[Experiment], Sides],
    out: Path,
    jobs: int = 1,
    kept: Sequence[str] = KEPT,
) -> list[Row]:
    """Run every side of every experiment on a trace per seed, ``jobs`` at a time.

    Rows are added to ``out`` as they come, and what it has already is not run again.
    """
    rows: list[Row] = json.loads(out.read_text()) if out.exists() else []
    done = {(row["experiment"], row["seed"], row["name"]) for row in rows}
    todo = [
        _Job(experiment, seed, name, flags)
        for seed in seeds
        for experiment in chosen
        for name, flags in sides(experiment).items()
        if (experiment.title, seed, name) not in done
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="replay-seeds-") as folder, ThreadPoolExecutor(jobs) as pool:
        _write_traces(todo, Path(folder))
        results = pool.map(lambda job: _run(job, Path(folder)), todo)
        for job, result in zip(todo, results, strict=True):
            if result is None:
                print(f"{', '.join(map(str, job.key))} failed", file=sys.stderr)
                continue
            names = {"experiment": job.experiment.title, "seed": job.seed, "name": job.name}
            rows.append(names | {figure: result[figure] for figure in kept})
            out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _write_traces(jobs: Sequence[_Job], folder: Path) -> None:
    for kind, seed, requests in {(j.experiment.kind, j.seed, j.experiment.requests) for j in jobs}:
        if seed != 1:
            save_trace(_trace(kind, seed, folder), GENERATORS[kind](seed, requests))


def _trace(kind: str, seed: int, folder: Path) -> Path:
    return DATA / f"{kind}.jsonl" if seed == 1 else folder / f"{kind}-{seed}.jsonl"


def _run(job: _Job, folder: Path) -> Row | None:
    trace = _trace(job.experiment.kind, job.seed, folder)
    return run_apart([*job.experiment.flags(trace), *job.flags])


def ratio_table(rows: Sequence[Row]) -> str:
    """Per experiment and backend: middle output rates, and Jenga's as a multiple, by seed."""
    header = ["geometry, trace, budget", "against", "Jenga's rate as a multiple", "by seed"]
    header += ["hit rate", "Jenga's"]
    lines = [
        [title, name, *_cells(pairs)]
        for title, own in by_experiment(rows)
        for name, pairs in _pairs(own)
    ]
    return markdown(header, [":--", ":--", "--:", ":--", "--:", "--:"], lines)


def held_out_table(rows: Sequence[Row]) -> str:
    """Per experiment: Jenga's middle and overall output rates as multiples, and longest waits."""
    header = ["geometry, trace, budget", "against", "seeds", "middle rate, geometric mean"]
    header += ["by seed", "whole run", "longest wait, s, by seed", "Jenga's"]
    lines = [
        [title, name, *_held_out_cells(pairs)]
        for title, own in by_experiment(rows)
        for name, pairs in _pairs(own)
    ]
    return markdown(header, [":--", ":--", "--:", "--:", ":--", "--:", ":--", ":--"], lines)


def _held_out_cells(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    middle, whole = (
        [ours[rate] / theirs[rate] for ours, theirs in pairs]
        for rate in ("mid_out_tok_s", "out_tok_s")
    )
    waits = [[f"{row['longest_wait_s']:.0f}" for row in side] for side in zip(*pairs, strict=True)]
    return [
        f"{len(pairs)}",
        f"{statistics.geometric_mean(middle):.2f}",
        ", ".join(f"{ratio:.2f}" for ratio in middle),
        f"{statistics.geometric_mean(whole):.2f}",
        ", ".join(waits[1]),
        ", ".join(waits[0]),
    ]


def _cells(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """The median ratio of (Jenga's row, the other's), all of them, and mean hit rates."""
    ratios = [ours["mid_out_tok_s"] / theirs["mid_out_tok_s"] for ours, theirs in pairs]
    hits = [statistics.mean(row["hit_rate"] for row in side) for side in zip(*pairs, strict=True)]
    return [
        f"{statistics.median(ratios):.2f}",
        ", ".join(f"{ratio:.2f}" for ratio in ratios),
        f"{hits[1]:.2f}",
        f"{hits[0]:.2f}",
    ]


def ablation_table(rows: Sequence[Row]) -> str:
    """A table per geometry. Per kind of trace and policy: the middle output rate without it against
    all of them, in per cent; the geometric mean over the seeds, the least and the greatest."""
    columns: dict[str, dict[str, dict[str, str]]] = {}
    for title, own in by_experiment(rows):
        geometry, kind, _ = title.split(", ")
        changes = {name: _change(pairs) for name, pairs in _pairs(own)}
        columns.setdefault(geometry, {})[kind] = changes
    return "\n\n".join(_table_of(geometry, kinds) for geometry, kinds in columns.items())


def _table_of(geometry: str, kinds: dict[str, dict[str, str]]) -> str:
    names = sorted(set().union(*kinds.values()))
    lines = [
        [f"`{name}`", *(changes.get(name, "-") for changes in kinds.values())] for name in names
    ]
    return markdown([f"{geometry}, without", *kinds], [":--"] + ["--:"] * len(kinds), lines)


def _change(pairs: Sequence[tuple[Row, Row]]) -> str:
    ratios = [theirs["mid_out_tok_s"] / ours["mid_out_tok_s"] for ours, theirs in pairs]
    mean, least, most = (
        f"{100 * (ratio - 1):+.1f}"
        for ratio in (statistics.geometric_mean(ratios), min(ratios), max(ratios))
    )
    return f"{mean} ({least} … {most})"


def by_experiment(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for title in dict.fromkeys(row["experiment"] for row in rows):
        yield title, [row for row in rows if row["experiment"] == title]


def _pairs(own: Sequence[Row]) -> Iterator[tuple[str, list[tuple[Row, Row]]]]:
    """Each side but Jenga's own with its (Jenga's row, its row) pairs, seed by seed."""
    jenga = {row["seed"]: row for row in own if row["name"] == "jenga"}
    for name in dict.fromkeys(row["name"] for row in own if row["name"] != "jenga"):
        other = {row["seed"]: row for row in own if row["name"] == name}
        if seeds := sorted(jenga.keys() & other.keys()):
            yield name, [(jenga[seed], other[seed]) for seed in seeds]
