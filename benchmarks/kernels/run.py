"""Measure every kernel on the GPU at hand: `python -m benchmarks.kernels.run`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .result import Row, document

RESULTS = Path(__file__).parent / "results"
BUDGET_SECONDS = 450
WORKSPACE_BYTES = 256 << 20


def sections(is_hopper: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """Sections in the order of the targets; their modules import flashinfer, hence the delay."""
    from . import attention, memory, stack, tables

    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    return {
        "tables": lambda: tables.rows(workspace),
        "memory": memory.rows,
        "stack": lambda: stack.rows(workspace),
        "attention": lambda: attention.rows(workspace, is_hopper),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.run", description=__doc__)
    names = ("tables", "memory", "stack", "attention")
    parser.add_argument("--only", choices=names, action="append", help="sections; all by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        return 1
    is_hopper = torch.cuda.get_device_capability()[0] == 9
    build_modules(is_hopper)
    start = time.monotonic()
    rows, not_run = [], []
    for name, measure in sections(is_hopper).items():
        if options.only and name not in options.only:
            continue
        for row in measure():
            rows.append(row)
            print(row.line(), flush=True)
            if time.monotonic() - start > BUDGET_SECONDS:
                not_run.append(f"{name} after {row.name}")
                break
        torch.cuda.empty_cache()
    write(rows, not_run, options.out)
    return 0


def build_modules(is_hopper: bool) -> None:
    """Compile what is missing; not counted in the time of the run."""
    from flashinfer_ext.aot import build_here
    from flashinfer_ext.modules import gpu_test_modules

    build_here([m for m in gpu_test_modules() if is_hopper or "fa3" not in m.name])


def write(rows: list[Row], not_run: list[str], folder: Path) -> None:
    content = document(rows, not_run)
    folder.mkdir(parents=True, exist_ok=True)
    device = content["device"].lower().replace(" ", "-")
    path = folder / f"{device}-{content['date'][:10]}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{path}: {len(rows)} rows, not run: {not_run or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
