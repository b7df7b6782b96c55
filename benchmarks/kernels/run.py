"""Measure every kernel on the GPU at hand: `python -m benchmarks.kernels.run`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .result import Failed, Row, document

RESULTS = Path(__file__).parent / "results"
BUDGET_SECONDS = 450
WORKSPACE_BYTES = 256 << 20


def sections(is_hopper: bool) -> dict[str, Callable[[], Iterator[Row | Failed]]]:
    """Sections in the order of the targets; those after "memory" need FlashInfer."""
    from . import attention, memory, stack, tables

    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    return {
        "tables": tables.builds,
        "memory": memory.rows,
        "plans": lambda: tables.plans(workspace),
        "stack": lambda: stack.rows(workspace),
        "attention": lambda: attention.rows(workspace, is_hopper),
    }


NAMES = ("tables", "memory", "plans", "stack", "attention")
NEED_FLASHINFER = {"plans", "stack", "attention"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.run", description=__doc__)
    parser.add_argument("--only", choices=NAMES, action="append", help="sections; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 1
    is_hopper = torch.cuda.get_device_capability()[0] == 9
    chosen = [name for name in NAMES if name in (options.only or NAMES)]
    if NEED_FLASHINFER & set(chosen):
        build_modules(is_hopper)
    results, not_run = measure(chosen, sections(is_hopper))
    rows = [row for row in results if isinstance(row, Row)]
    failed = [row for row in results if isinstance(row, Failed)]
    write(rows, failed, not_run, options.out, "-".join(options.only or ["all"]))
    return 1 if failed else 0


def measure(
    chosen: list[str], measures: dict[str, Callable[[], Iterator[Row | Failed]]]
) -> tuple[list[Row | Failed], list[str]]:
    """What the sections gave, an error of one included, and what there was no time for."""
    start = time.monotonic()
    results: list[Row | Failed] = []
    not_run = []
    for name in chosen:
        for row in whole(name, measures[name]):
            results.append(row)
            print(row.line(), flush=True)
            if time.monotonic() - start > BUDGET_SECONDS:
                not_run.append(f"{name} after {row.name}")
                break
        torch.cuda.empty_cache()
    return results, not_run


def whole(name: str, section: Callable[[], Iterator[Row | Failed]]) -> Iterator[Row | Failed]:
    """The section's rows, and the error that ended it, if one did."""
    try:
        yield from section()
    except Exception as error:
        yield Failed(name, f"{type(error).__name__}: {error}".splitlines()[0])


def build_modules(is_hopper: bool) -> None:
    """Compile what is missing; not counted in the time of the run."""
    from flashinfer_ext.aot import make_ready
    from flashinfer_ext.modules import gpu_test_modules

    make_ready([m for m in gpu_test_modules() if is_hopper or "fa3" not in m.name])


def write(
    rows: list[Row], failed: list[Failed], not_run: list[str], folder: Path, what: str
) -> None:
    content = document(rows, failed, not_run)
    folder.mkdir(parents=True, exist_ok=True)
    device = content["device"].lower().replace(" ", "-")
    path = folder / f"{device}-{content['date'][:10]}-{what}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{path}: {len(rows)} rows, {len(failed)} failed, not run: {not_run or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
