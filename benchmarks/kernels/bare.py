"""Run GPU tests or benchmarks from the kit, where nothing of this project is installed.

    python3 -m benchmarks.kernels.bare tests --out DIR
    python3 -m benchmarks.kernels.bare benchmarks --out DIR

Every step is a process of its own, so that one that ends the CUDA context leaves the next alone.
Writes DIR/tests.json or DIR/benchmarks.json after each step; the exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KIT = ROOT / ".cache" / "gpu-kit"
BUDGET_SECONDS = 470
PYTEST = ("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu", "-rf")
# In the order of what the next can be believed for; the first needs torch and Triton alone.
STEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "tests": {
        name: (*PYTEST, f"tests/gpu/test_gpu_{name}.py")
        for name in ("kernels", "flashinfer", "backends")
    },
    "benchmarks": {
        name: ("-m", "benchmarks.kernels.run", "--only", name)
        for name in ("tables", "memory", "stack", "attention", "plans")
    },
}


def environment(kit: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Variables of a step: the kit's packages before the machine's, and its compiled modules."""
    places = [kit / "site", kit / "shim", ROOT, given.get("PYTHONPATH")]
    return dict(given) | {
        "PYTHONPATH": os.pathsep.join(str(place) for place in places if place),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JENGA_FLASHINFER_MODULES": str(kit / "modules"),
        "FLASHINFER_WORKSPACE_BASE": str(kit / "workspace"),
        "FLASHINFER_CUDA_ARCH_LIST": json.loads((kit / "kit.json").read_text())["arch"],
    }


def run_step(
    command: Sequence[str], variables: Mapping[str, str], log: Path, seconds: float
) -> dict[str, Any]:
    """Run one step; its output goes to ``log``. Status 124 is that of a step out of time."""
    start = time.monotonic()
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=dict(variables),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    lines = log.read_text(errors="replace").splitlines()
    return {
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "last_line": lines[-1] if lines else "",
    }


def run_steps(
    which: str,
    out: Path,
    kit: Path,
    only: Sequence[str] = (),
    budget_seconds: float = BUDGET_SECONDS,
) -> bool:
    """Run the steps of ``which`` one after the other; returns whether all passed."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + budget_seconds
    variables = environment(kit, os.environ)
    done: dict[str, Any] = {}
    for name, command in STEPS[which].items():
        if only and name not in only:
            continue
        if which == "benchmarks":
            command = (*command, "--out", str(out))
        left = end - time.monotonic()
        done[name] = (
            run_step(command, variables, out / f"{which}-{name}.log", left)
            if left > 0
            else {"status": 124, "failures": [], "last_line": "no time left"}
        )
        print(f"{name}: status {done[name]['status']}, {done[name]['last_line']}", flush=True)
        (out / f"{which}.json").write_text(json.dumps(done, indent=1) + "\n")
    return all(step["status"] == 0 for step in done.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.kernels.bare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("which", choices=sorted(STEPS))
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "gpu-results")
    parser.add_argument("--kit", type=Path, default=KIT, help="made by `make gpu-kit`")
    parser.add_argument("--only", action="append", default=[], help="a step; repeatable")
    options = parser.parse_args(arguments)
    if not (options.kit / "kit.json").exists():
        print(f"{options.kit}: no kit there: run `make gpu-kit` first", file=sys.stderr)
        return 1
    passed = run_steps(options.which, options.out.resolve(), options.kit.resolve(), options.only)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
