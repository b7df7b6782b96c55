"""Runs stock SGLang once per ratio between its pools, each in a process of its own."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.replay.spec import RunSpec


def sweep_ratios(
    name: str, specs: Sequence[RunSpec], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the results, one per value of the ratio `name`, best mid output rate first.

    A ratio that SGLang refuses (a window pool smaller than the window) is reported and left out.
    """
    results = []
    for spec in specs:
        ratio = str(getattr(spec, name))
        result = _run_apart(options, spec, (f"--{name.replace('_', '-')}", ratio))
        if result is None:
            print(f"ratio {ratio} cannot run", file=sys.stderr)
        else:
            results.append(result)
    return sorted(results, key=lambda result: -result["mid_out_tok_s"])


def _run_apart(
    options: argparse.Namespace, spec: RunSpec, ratio: Sequence[str]
) -> dict[str, Any] | None:
    return run_apart(
        [
            *("--backend", spec.backend),
            *("--geometry", str(options.geometry), "--trace", str(spec.trace)),
            *("--kv-bytes", str(spec.kv_bytes)),
            *("--chunk-tokens", str(spec.chunk_tokens)),
            *("--max-running-requests", str(spec.max_running_requests)),
            *ratio,
            *(() if spec.page_size_tokens is None else ("--page-size", str(spec.page_size_tokens))),
            *(("--strict",) if spec.strict else ()),
            *(("--overlap",) if spec.overlap else ()),
        ]
    )


def run_apart(arguments: Sequence[str]) -> dict[str, Any] | None:
    """`run` with ``arguments`` in a new process, because a process can build one scheduler only.
    None when it fails."""
    with TemporaryDirectory(prefix="replay-") as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.replay", "run", *arguments, "--json", str(out)]
        finished = subprocess.run(command, check=False)
        if finished.returncode != 0 or not out.exists():
            return None
        loaded: dict[str, Any] = json.loads(out.read_text())
        return loaded
