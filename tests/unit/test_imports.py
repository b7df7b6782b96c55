"""The core runs without torch and SGLang. `make lint` looks at the directions of all imports
(`lint-imports`, by the contracts in `pyproject.toml`)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_importing_the_whole_core_loads_neither_torch_nor_sglang() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "jenga_sglang/core").rglob("*.py"))
    ]
    program = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'sglang', 'triton', 'flashinfer'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
