"""Results as a Markdown table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.replay.spec import RATIOS

Result = dict[str, Any]

# Column title, figure, format.
COLUMNS = (
    ("out tok/s (mid)", "mid_out_tok_s", ".0f"),
    ("out tok/s", "out_tok_s", ".0f"),
    ("hit rate", "hit_rate", ".3f"),
    ("hit bound", "hit_bound", ".3f"),
    ("mean running", "mean_running", ".1f"),
    ("retracted", "retractions", "d"),
    ("recomputed tokens", "recomputed_tokens", "d"),
    ("useful", "useful_frac", ".2f"),
    ("held", "held_frac", ".2f"),
    ("manager µs/token", "manager_us_per_token", ".2f"),
    ("TTFT p50 s", "ttft_p50_s", ".1f"),
    ("TTFT p99 s", "ttft_p99_s", ".1f"),
    ("aborted", "aborted_requests", "d"),
)


def load_results(paths: Iterable[Path]) -> list[Result]:
    """Read result files; a file of a sweep holds several."""
    results: list[Result] = []
    for path in paths:
        loaded = json.loads(path.read_text())
        results += loaded if isinstance(loaded, list) else [loaded]
    return results


def markdown_table(results: Sequence[Result]) -> str:
    """Return one row per run."""
    header = ["geometry", "trace", "budget GiB", "backend", *(title for title, _, _ in COLUMNS)]
    align = [":--"] * 4 + ["--:"] * len(COLUMNS)
    return markdown(header, align, [_row(result) for result in results])


def drafts_table(results: Sequence[Result]) -> str:
    """Runs with drafts, one row per models, kind of trace and budget: middle output rates with hit
    rates of the first trace, Jenga's as a multiple of the best of the others' by trace, by name,
    and tokens accepted in a step."""
    rows: dict[tuple[str, ...], dict[str, list[Result]]] = {}
    for result in results:
        budget = f"{result['kv_bytes'] / (1 << 30):g} GiB"
        models = f"{result['geometry']} + {result['draft']}"
        trace = Path(result["trace"]).stem
        kind = "-".join(trace.split("-")[:2])  # a seed other than 1 comes behind
        rows.setdefault((models, kind, budget), {}).setdefault(trace, []).append(result)
    header = ["models", "trace", "budget", "others", "Jenga", "times the best, by seed", "accepted"]
    align = [":--"] * 4 + ["--:", ":--", "--:"]
    return markdown(header, align, [[*key, *_against(own)] for key, own in rows.items()])


def _against(traces: Mapping[str, Sequence[Result]]) -> list[str]:
    first, *_ = traces.values()
    jenga, others = _sides(first)
    times = []
    for _, own in sorted(traces.items()):
        ours, theirs = _sides(own)
        best = max(result["mid_out_tok_s"] for result in theirs)
        times.append(f"{ours['mid_out_tok_s'] / best:.2f}")
    return [
        ", ".join(f"{label(result)} {_rate(result)}" for result in others),
        _rate(jenga),
        ", ".join(times),
        f"{jenga['accept_length']:.2f}",
    ]


def _sides(own: Sequence[Result]) -> tuple[Result, list[Result]]:
    (jenga,) = (result for result in own if result["backend"] == "jenga")
    return jenga, [result for result in own if result is not jenga]


def _rate(result: Result) -> str:
    return f"{result['mid_out_tok_s']:,.0f} ({result['hit_rate']:.2f})"


def markdown(header: list[str], align: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, align, *rows))


def label(result: Result) -> str:
    """Return the backend's name with what was changed about it."""
    parts = [str(result["backend"])]
    ratios = (result.get(name) for name in RATIOS)
    parts += [f"{ratio:g}" for ratio in ratios if ratio is not None]
    parts += [f"{name}={value}" for name, value in result["jenga_policies"].items()]
    return " ".join(parts)


def _row(result: Result) -> list[str]:
    budget = f"{result['kv_bytes'] / (1 << 30):g}"
    names = [str(result["geometry"]), Path(result["trace"]).stem, budget, label(result)]
    return names + [format(result[figure], style) for _, figure, style in COLUMNS]
