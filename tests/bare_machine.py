"""A Python that has what a machine with a GPU may have, and nothing of SGLang or FlashInfer."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Packages beside torch and Triton: what these need, pytest, and what FlashInfer imports.
PRESENT = (
    *("torch", "torchgen", "functorch", "triton", "numpy*", "nvidia*", "cuda", "sympy", "mpmath"),
    *("typing_extensions*", "networkx", "fsspec", "jinja2", "markupsafe", "filelock", "setuptools"),
    *("packaging", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "tqdm"),
    *("pynvml*", "py.py", "pytest", "_pytest", "pluggy", "iniconfig", "pygments", "hypothesis"),
    *("_hypothesis*", "sortedcontainers", "attr", "attrs"),
)
ABSENT = ("sglang", "sgl_kernel", "transformers", "fastapi", "msgspec", "orjson", "tvm_ffi")


def make_site(folder: Path) -> Path:
    """Links to the packages that are present, and to no others."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parents[1]
    folder.mkdir(parents=True)
    for pattern in PRESENT:
        for entry in installed.glob(pattern):
            (folder / entry.name).symlink_to(entry)
    return folder


def run_bare(
    site: Path, *arguments: str, path: tuple[Path, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of ``site`` and the folders of ``path`` before them."""
    places = [*path, ROOT, site]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=ROOT,
        env=kept
        | {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
        | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
