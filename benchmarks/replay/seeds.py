"""The same comparison on other traces of the same kinds: how far does one trace's ratio carry?"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.replay.generators import GENERATORS
from benchmarks.replay.sweep import run_apart
from benchmarks.replay.trace import save_trace

DATA = Path(__file__).parent / "data"

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A kind of trace on a geometry. ``ratio`` is the best one that a sweep found on the trace in
    `data/`; None for a single group, which stock has no ratio for and unified memory refuses."""

    geometry: str
    kind: str
    requests: int
    kv_bytes: str
    ratio: float | None

    @property
    def title(self) -> str:
        return f"{self.geometry}, {self.kind}, {self.kv_bytes}"

    def backends(self) -> dict[str, list[str]]:
        """What runs, by name, and the flags that say so."""
        if self.ratio is None:
            return {"stock": ["--backend=stock"], "jenga": ["--backend=jenga"]}
        return {
            f"stock {self.ratio:g}": ["--backend=stock", f"--swa-full-tokens-ratio={self.ratio}"],
            "unified": ["--backend=unified"],
            "jenga": ["--backend=jenga"],
        }


EXPERIMENTS = (
    Experiment("gemma3-27b", "docqa", 400, "40GiB", 0.1),
    Experiment("gemma3-27b", "mix", 800, "32GiB", 0.4),
    Experiment("gpt-oss-120b", "docqa", 400, "10GiB", 0.1),
    Experiment("gpt-oss-120b", "mix", 800, "4GiB", 0.4),
    Experiment("llama3-8b", "docqa", 400, "16GiB", None),
    Experiment("gemma3-27b", "chat", 1_500, "16GiB", 0.6),
    Experiment("llama3-8b", "chat", 1_500, "8GiB", None),
)


def run_seeds(seeds: Sequence[int], chosen: Sequence[Experiment], out: Path) -> list[Row]:
    """Run every backend of every experiment on a new trace per seed; one seed after the other.

    Rows are added to ``out`` as they come, and what it has already is not run again.
    """
    rows: list[Row] = json.loads(out.read_text()) if out.exists() else []
    done = {(row["experiment"], row["seed"], row["name"]) for row in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for experiment in chosen:
            with TemporaryDirectory(prefix="replay-seeds-") as folder:
                trace = Path(folder) / f"{experiment.kind}.jsonl"
                save_trace(trace, GENERATORS[experiment.kind](seed, experiment.requests))
                for name, flags in experiment.backends().items():
                    if (experiment.title, seed, name) in done:
                        continue
                    result = _run(experiment, trace, flags)
                    if result is None:
                        print(f"{experiment.title}, seed {seed}: {name} failed", file=sys.stderr)
                        continue
                    names = {"experiment": experiment.title, "seed": seed, "name": name}
                    rows.append(names | result)
                    out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _run(experiment: Experiment, trace: Path, flags: Sequence[str]) -> Row | None:
    geometry = DATA / f"{experiment.geometry}.json"
    common = [f"--geometry={geometry}", f"--trace={trace}", f"--kv-bytes={experiment.kv_bytes}"]
    return run_apart([*common, *flags])


def ratio_table(rows: Sequence[Row]) -> str:
    """Per experiment and backend: middle output rates, and Jenga's as a multiple, by seed."""
    header = ["geometry, trace, budget", "against", "Jenga's rate as a multiple", "by seed"]
    header += ["hit rate", "Jenga's"]
    lines = [header, ["---"] * len(header)]
    for title in dict.fromkeys(row["experiment"] for row in rows):
        own = [row for row in rows if row["experiment"] == title]
        jenga = {row["seed"]: row for row in own if row["name"] == "jenga"}
        for name in dict.fromkeys(row["name"] for row in own if row["name"] != "jenga"):
            other = {row["seed"]: row for row in own if row["name"] == name}
            if seeds := sorted(jenga.keys() & other.keys()):
                pairs = [(jenga[seed], other[seed]) for seed in seeds]
                lines.append([title, name, *_cells(pairs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
