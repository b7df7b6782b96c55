"""The comparison: servers of equal bytes, the same loads, rounds that alternate between them."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.capacity.models import make_gemma_shaped, make_llama_shaped
from benchmarks.capacity.servers import Server, start
from benchmarks.serving.loads import Outcome, SharedPrefixes, run

# A sixteenth and a quarter of a document, as 1,024 and 4,096 of 16,384 tokens.
WINDOW_TOKENS = 32
CHUNK_TOKENS = 128

COMMON_FLAGS = [
    "--dtype=float32",
    "--page-size=16",
    f"--chunked-prefill-size={CHUNK_TOKENS}",
    "--max-running-requests=32",
    "--context-length=4096",
    "--decode-log-interval=1",
    "--random-seed=0",
    "--enable-cache-report",
    # A server that waits its turn computes nothing.
    "--sleep-on-idle",
]

# What each server adds to the common flags, and the module that starts it.
SERVERS = {
    "stock": ([], "sglang.launch_server"),
    "whole": (["--memory-backend=jenga"], "benchmarks.serving.whole_memory"),
    "jenga": (["--memory-backend=jenga"], "sglang.launch_server"),
}
# A model of one group has no windows that could be kept wholly.
SERVERS_OF = {"gemma": ("stock", "whole", "jenga"), "llama": ("stock", "jenga")}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "gemma": lambda path: make_gemma_shaped(path, window=WINDOW_TOKENS),
    "llama": make_llama_shaped,
}


@dataclass(frozen=True)
class Plan:
    """``pool_tokens`` are what stock's pool holds; all servers get its bytes."""

    models: Sequence[str]
    loads: Sequence[SharedPrefixes]
    pool_tokens: int
    repeats: int


LOADS = (
    SharedPrefixes("documents", 10, 5, 512, 32, 16, at_once=4),
    SharedPrefixes("documents, all at once", 10, 5, 512, 32, 16),
    SharedPrefixes("turns", 9, 2, 96, 32, 16, turns=4, at_once=8),
)
FULL = Plan(("gemma", "llama"), LOADS, 2_048, 5)
QUICK = Plan(
    ("gemma", "llama"),
    (
        SharedPrefixes("documents", 8, 3, 512, 32, 8, at_once=4),
        SharedPrefixes("turns", 4, 2, 96, 32, 8, turns=2, at_once=4),
    ),
    2_048,
    1,
)


def compare(plan: Plan) -> dict[str, Any]:
    """Run it all; returns what was run and every outcome, ready for JSON."""
    # Bound to where standard error is now: `bench_serving` has it, and standard output, redirected.
    console = Console(file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        runs = [
            run
            for model in plan.models
            for run in _compare_model(model, plan, Path(folder) / model, progress)
        ]
    return {
        "sglang": version("sglang"),
        "torch": version("torch"),
        "flags": COMMON_FLAGS,
        "window_tokens": WINDOW_TOKENS,
        "plan": asdict(plan),
        "runs": runs,
    }


def _compare_model(
    model: str, plan: Plan, path: Path, progress: Progress
) -> Iterator[dict[str, Any]]:
    names = SERVERS_OF[model]
    steps = (len(plan.loads) * plan.repeats + 1) * len(names)
    task = progress.add_task(f"{model}: starting servers", total=steps)
    MAKERS[model](path)
    flags = [f"--model-path={path}", f"--max-total-tokens={plan.pool_tokens}", *COMMON_FLAGS]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_start(name, flags, path)) for name in names]
        for server in servers:  # a first run that is not counted
            run(server, path, plan.loads[0], seed=0)
            progress.advance(task)
        for load in plan.loads:
            for repeat in range(plan.repeats):
                progress.update(task, description=f"{model}, {load.name}")
                outcomes: dict[str, Outcome] = {}
                for server in servers if repeat % 2 else servers[::-1]:
                    outcomes[server.name] = run(server, path, load, seed=1 + repeat)
                    progress.advance(task)
                yield from _rows(model, load, repeat, outcomes)


def _start(name: str, flags: list[str], path: Path) -> contextlib.AbstractContextManager[Server]:
    more, module = SERVERS[name]
    return start(name, [*flags, *more], path / f"{name}.log", module)


def _rows(
    model: str, load: SharedPrefixes, repeat: int, outcomes: dict[str, Outcome]
) -> Iterator[dict[str, Any]]:
    """One round, a row a server, with how many of stock's answers it gave as well."""
    expected = outcomes["stock"].texts
    for name, outcome in outcomes.items():
        names = {"model": model, "load": load.name, "server": name, "repeat": repeat}
        same = sum(a == b for a, b in zip(expected, outcome.texts, strict=True))
        yield names | outcome.figures() | {"answers": len(expected), "same_answers": same}
