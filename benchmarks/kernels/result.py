"""One measured number with what it is compared to."""

from __future__ import annotations

import datetime
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """`value` in `unit`, beside the `baseline` it should be held against, if it has one.

    `target` bounds the value from above, or from below where `at_least`; None: no target is set.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    target: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self) -> str:
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        target = "" if self.target is None else f"{'>=' if self.at_least else '<='} {self.target:g}"
        return f"{self.name:58} {self.value:10.3f} {self.unit:10} {target:10} {verdict}"


def document(rows: list[Row], not_run: list[str]) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the run."""
    import flashinfer
    import triton

    device = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.name,
        "capability": f"{device.major}.{device.minor}",
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "flashinfer": flashinfer.__version__,
        },
        "commit": _commit(),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        "not_run": not_run,
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"
