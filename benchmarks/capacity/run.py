"""Identical flags and bytes, two memory backends, one load; ratios, median and range of repeats."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.capacity.models import make_gemma_shaped, make_llama_shaped
from benchmarks.capacity.servers import Load, Outcome, Server, start

PROMPT_TOKENS = 1024
WINDOW_TOKENS = PROMPT_TOKENS // 16
OUTPUT_TOKENS = 192
REQUESTS = 20
POOL_TOKENS = 6000
VOCABULARY = 256

COMMON_FLAGS = [
    "--dtype=float32",
    "--page-size=16",
    "--chunked-prefill-size=2048",
    "--max-running-requests=64",
    f"--max-total-tokens={POOL_TOKENS}",
    f"--context-length={2 * PROMPT_TOKENS}",
    "--decode-log-interval=1",
    "--random-seed=0",
]


def main() -> None:
    """Run both comparisons and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    committed = Path(__file__).parent / "results.json"
    parser.add_argument("--out", type=Path, default=committed, help=f"JSON file ({committed.name})")
    options = parser.parse_args()
    load = make_load(seed=0)
    results: dict[str, Any] = {
        "sglang": version("sglang"),
        "torch": version("torch"),
        "requests": REQUESTS,
        "prompt_tokens": PROMPT_TOKENS,
        "window_tokens": WINDOW_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "pool_tokens": POOL_TOKENS,
        "flags": COMMON_FLAGS,
    }
    with tempfile.TemporaryDirectory() as folder:
        gemma, llama = Path(folder) / "gemma", Path(folder) / "llama"
        make_gemma_shaped(gemma, window=WINDOW_TOKENS)
        make_llama_shaped(llama)
        results["gemma"] = compare(gemma, load, options.repeats, capped=True)
        results["llama"] = compare(llama, load, options.repeats, capped=False)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def make_load(seed: int) -> Load:
    """Prompts of random tokens, so that nothing is shared and nothing is cached."""
    rng = random.Random(seed)
    tokens = range(10, VOCABULARY - 10)
    return Load([rng.choices(tokens, k=PROMPT_TOKENS) for _ in range(REQUESTS)], OUTPUT_TOKENS)


def compare(model: Path, load: Load, repeats: int, *, capped: bool) -> dict[str, Any]:
    """Run ``load`` on both backends in turn. Raises ``AssertionError`` if an answer differs.

    ``capped`` adds a Jenga server that may run no more requests at once than stock did: what is
    left of the gain then comes from the attention backend, not from memory.
    """
    flags = [f"--model-path={model}", *COMMON_FLAGS]
    jenga = [*flags, "--memory-backend=jenga"]
    with contextlib.ExitStack() as stack, Progress(transient=True) as progress:
        servers = [
            stack.enter_context(start("stock", flags, model / "stock.log")),
            stack.enter_context(start("jenga", jenga, model / "jenga.log")),
        ]
        warm_up = [server.run(load) for server in servers]
        if capped:
            limit = [*jenga, f"--max-running-requests={warm_up[0].peak_running}"]
            servers.append(stack.enter_context(start("capped", limit, model / "capped.log")))
            servers[-1].run(load)
        outcomes = measure(servers, load, repeats, progress)
    check_equal(outcomes)
    return {name: summarise(runs) for name, runs in outcomes.items()} | {"ratios": ratios(outcomes)}


def measure(
    servers: Sequence[Server], load: Load, repeats: int, progress: Progress
) -> dict[str, list[Outcome]]:
    """One run on every server, then the next round: a drifting machine hits all alike."""
    outcomes: dict[str, list[Outcome]] = {server.name: [] for server in servers}
    task = progress.add_task("measuring", total=repeats * len(servers))
    for _ in range(repeats):
        for server in servers:
            outcomes[server.name].append(server.run(load))
            progress.advance(task)
    return outcomes


def check_equal(outcomes: dict[str, list[Outcome]]) -> None:
    expected = outcomes["stock"][0].outputs
    for name, runs in outcomes.items():
        for run in runs:
            assert run.outputs == expected, f"{name} answered otherwise than stock"


def summarise(runs: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "wall_s": spread([run.wall_s for run in runs]),
        "output_tokens_per_s": spread([run.output_tokens_per_s for run in runs]),
        "peak_running": spread([run.peak_running for run in runs]),
        "retractions": spread([run.retractions for run in runs]),
    }


def ratios(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Against stock, pair by pair of the same round."""
    stock = outcomes["stock"]
    return {
        name: {
            "speedup": spread([s.wall_s / r.wall_s for s, r in zip(stock, runs, strict=True)]),
            "concurrency": spread(
                [r.peak_running / s.peak_running for s, r in zip(stock, runs, strict=True)]
            ),
        }
        for name, runs in outcomes.items()
        if name != "stock"
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def table(results: dict[str, Any]) -> str:
    """What README.md shows, in Markdown."""
    lines = [
        "| model | server | wall time, s | times as fast as stock | requests at once | times stock "
        "| retractions |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in ("gemma", "llama"):
        for name in ("stock", "jenga", "capped"):
            if name in results[model]:
                lines.append(_row(model, name, results[model]))
    return "\n".join(lines)


def _row(model: str, name: str, result: dict[str, Any]) -> str:
    row, ratio = result[name], result["ratios"].get(name)
    cells = [
        model,
        name,
        _shown(row["wall_s"]),
        f"**{_shown(ratio['speedup'])}**" if ratio else "1",
        _shown(row["peak_running"]),
        f"**{_shown(ratio['concurrency'])}**" if ratio else "1",
        _shown(row["retractions"]),
    ]
    return f"| {' | '.join(cells)} |"


def _shown(value: dict[str, float]) -> str:
    """The median, and the range unless there is none."""
    median, least, most = (f"{value[name]:.3g}" for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least} to {most})"
