"""What one run is: the values that the command line gives and the result file keeps."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.replay.drafts import Drafting
from benchmarks.replay.geometry import Geometry

# SGLang's fixed ratios: of the window pool to the full one in tokens, of states to rows in bytes.
RATIOS = ("swa_full_tokens_ratio", "mamba_full_memory_ratio")

# Of pinned memory over PCIe 4.0 x16, about.
COPY_BYTES_PER_S = 25e9


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
    # Jenga: whether SGLang would have a pool of windows for this model, by which it sizes pools.
    window_pool: bool = True
    jenga_policies: dict[str, str] = field(default_factory=dict)
    # Host memory below the pool, bytes a second of copies in either direction, and when they are.
    host_bytes: int = 0
    copy_bytes_per_s: float = COPY_BYTES_PER_S
    write_policy: str = "write_back"
    # SGLang's default of a server; the committed results are without.
    overlap: bool = False
    strict: bool = False
    drafting: Drafting | None = None

    @property
    def memory(self) -> Geometry:
        """What keeps anything: the model's layers, and those of one that drafts."""
        return self.geometry if self.drafting is None else self.drafting.memory

    @property
    def shrunk_kv_bytes(self) -> int:
        """The budget that SGLang is given: everything in the dummy model is this much smaller."""
        return self.kv_bytes // self.geometry.shrink_factor
