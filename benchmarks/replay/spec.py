"""What one run is: the values that the command line gives and the result file keeps."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.replay.geometry import Geometry

# SGLang's fixed ratios: of the window pool to the full one in tokens, of states to rows in bytes.
RATIOS = ("swa_full_tokens_ratio", "mamba_full_memory_ratio")

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_bytes(text: str) -> int:
    """Read `40GiB`, `512MiB` or a plain number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B|)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"expected a size such as 40GiB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


@dataclass(frozen=True)
class RunSpec:
    """One replay. Two runs that differ in `backend` alone are the same experiment."""

    backend: str
    geometry: Geometry
    trace: Path
    kv_bytes: int
    page_size_tokens: int | None = None
    chunk_tokens: int = 8192
    max_running_requests: int = 256
    swa_full_tokens_ratio: float | None = None
    mamba_full_memory_ratio: float | None = None
    jenga_policies: dict[str, str] = field(default_factory=dict)
    strict: bool = False

    @property
    def shrunk_kv_bytes(self) -> int:
        """The budget that SGLang is given: everything in the dummy model is this much smaller."""
        return self.kv_bytes // self.geometry.shrink_factor
