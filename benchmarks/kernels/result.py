"""One measured number with what it is compared to."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Failed:
    """What raised an error in place of a number."""

    name: str
    error: str

    def line(self) -> str:
        return f"{self.name:58} FAILED: {self.error}"


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


def tried(name: str, measure: Callable[[], Row]) -> Row | Failed:
    """The number, or the error that came in its place: those that follow are measured still."""
    try:
        return measure()
    except Exception as error:
        return Failed(name, f"{type(error).__name__}: {error}".splitlines()[0])


def document(rows: list[Row], failed: list[Failed], not_run: list[str]) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the run."""
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
            "flashinfer": _flashinfer_version(),
        },
        "commit": _commit(),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        "failed": [asdict(failure) for failure in failed],
        "not_run": not_run,
    }


def _flashinfer_version() -> str | None:
    """None where it is not there, which sections of Triton kernels do not mind."""
    try:
        return metadata.version("flashinfer-python")
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"
