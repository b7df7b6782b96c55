"""Host CPU time inside the manager: unified memory and Jenga, one after the other, round by round.

Alone on the machine, or the ratios say little; how far they lie apart says how little.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.replay.report import markdown
from benchmarks.replay.seeds import DATA, Experiment
from benchmarks.replay.sweep import run_apart

Row = dict[str, Any]

BACKENDS = ("unified", "jenga")
KEPT = ("manager_us_per_token", "prefill_tokens", "decode_tokens")


def is_compared(experiment: Experiment) -> bool:
    """Whether unified memory serves the experiment to its end, and one of it says enough."""
    has_unified = experiment.ratio is not None and not experiment.has_states
    return has_unified and experiment.kind in ("docqa", "chat")


def run_rounds(rounds: int, chosen: Sequence[Experiment], out: Path) -> list[Row]:
    """Run both backends on the trace in `data/` of every experiment, `rounds` times each, and add
    rows to `out`, behind those that it has. Raises `SystemExit` when a run fails."""
    rows: list[Row] = json.loads(out.read_text()) if out.exists() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    for experiment in chosen:
        case = {"geometry": experiment.geometry, "trace": experiment.kind}
        before = max((row["round"] for row in rows if row.items() >= case.items()), default=0)
        for number in range(before + 1, before + 1 + rounds):
            for backend in BACKENDS:
                trace = DATA / f"{experiment.kind}.jsonl"
                result = run_apart([*experiment.flags(trace), f"--backend={backend}"])
                if result is None:
                    raise SystemExit(f"{experiment.title} failed on {backend}")
                figures = {figure: result[figure] for figure in KEPT}
                rows.append(case | {"round": number, "backend": backend} | figures)
            out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def host_table(rows: Sequence[Row]) -> str:
    """Per geometry and trace: microseconds per scheduled token and seconds for the whole trace,
    medians over the rounds, and Jenga's time per token as a share of unified memory's."""
    header = ["geometry, trace", "unified", "Jenga", "ratio", "by round", "unified, s", "Jenga, s"]
    align = [":--", "--:", "--:", "--:", ":--", "--:", "--:"]
    lines = []
    for case in dict.fromkeys((row["geometry"], row["trace"]) for row in rows):
        own = [row for row in rows if (row["geometry"], row["trace"]) == case]
        theirs, ours = ([r for r in own if r["backend"] == name] for name in BACKENDS)
        pairs = zip(theirs, ours, strict=True)
        ratios = [_us_per_token(jenga) / _us_per_token(unified) for unified, jenga in pairs]
        lines.append(
            [
                ", ".join(case),
                *(f"{_median(side, _us_per_token):.2f}" for side in (theirs, ours)),
                f"{statistics.median(ratios):.2f}",
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                *(f"{_median(side, _seconds):.1f}" for side in (theirs, ours)),
            ]
        )
    return markdown(header, align, lines)


def _median(rows: Sequence[Row], figure: Callable[[Row], float]) -> float:
    return statistics.median(map(figure, rows))


def _us_per_token(row: Row) -> float:
    return float(row["manager_us_per_token"])


def _seconds(row: Row) -> float:
    return _us_per_token(row) * (row["prefill_tokens"] + row["decode_tokens"]) / 1e6
