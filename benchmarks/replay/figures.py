"""Results as a figure: one panel a quantity, one group of bars an experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.replay.report import Result, label

# The runs that output rates are drawn relative to, since geometries differ by orders.
BASELINE = "stock"


def plot_results(results: Sequence[Result], out: Path) -> None:
    """Draw rate, hit rate and manager time to `out`; its suffix chooses the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("plots need matplotlib: pip install 'jenga-sglang[plot]'") from error

    figure = Figure(figsize=(11, 9), layout="constrained")
    rate, hits, manager = figure.subplots(3, 1, sharex=True)
    relative = _relative_rates(results)
    _bars(rate, results, relative, [f"{r['mid_out_tok_s']:.0f}" for r in results])
    rate.set_title(f"output rate relative to {BASELINE} (numbers: tokens/s)", loc="left")
    _bars(hits, results, [r["hit_rate"] for r in results])
    _draw_bounds(hits, results)
    hits.set_title("hit rate (line: infinite cache)", loc="left")
    _bars(manager, results, [r["manager_us_per_token"] for r in results])
    manager.set_title("memory manager, host CPU µs per scheduled token", loc="left")
    experiments = _experiments(results)
    manager.set_xticks(range(len(experiments)), experiments)
    rate.legend(frameon=False, ncols=4)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def _experiment(result: Result) -> str:
    budget = result["kv_bytes"] / (1 << 30)
    return f"{result['geometry']}\n{Path(result['trace']).stem}, {budget:g} GiB"


def _experiments(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(map(_experiment, results)))


def _relative_rates(results: Sequence[Result]) -> list[float]:
    """Divide each rate by its experiment's baseline, or by its best rate without a baseline."""
    rates: dict[str, dict[str, float]] = {}
    for result in results:
        rates.setdefault(_experiment(result), {})[label(result)] = result["mid_out_tok_s"]
    base = {name: by.get(BASELINE, max(by.values())) for name, by in rates.items()}
    return [result["mid_out_tok_s"] / base[_experiment(result)] for result in results]


def _bars(
    axis: Any, results: Sequence[Result], heights: Sequence[float], texts: Sequence[str] = ()
) -> None:
    """Draw one bar a result, coloured by backend, with its text on top."""
    experiments = _experiments(results)
    labels = list(dict.fromkeys(map(label, results)))
    width = 0.8 / len(labels)
    for index, series in enumerate(labels):
        shift = (index - (len(labels) - 1) / 2) * width
        chosen = [i for i, result in enumerate(results) if label(result) == series]
        places = [experiments.index(_experiment(results[i])) + shift for i in chosen]
        bars = axis.bar(places, [heights[i] for i in chosen], width, label=series)
        if texts:
            axis.bar_label(bars, [texts[i] for i in chosen], fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_bounds(axis: Any, results: Sequence[Result]) -> None:
    """Mark what an infinite cache would hit."""
    experiments = _experiments(results)
    for result in results:
        x = experiments.index(_experiment(result))
        axis.hlines(result["hit_bound"], x - 0.45, x + 0.45, color="black")
