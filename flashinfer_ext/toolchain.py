"""What FlashInfer's compiler needs where there is a CUDA toolkit but no GPU and no driver.

| problem                                             | answer                                   |
|-----------------------------------------------------|------------------------------------------|
| `nvcc` on the PATH is a wrapper or a link            | ask nvcc itself for the toolkit's folder |
| linking wants libcuda, which comes with the driver   | an empty library of that name            |
| a toolkit made of pip packages has libcudart.so.N    | a link of the plain name                 |
| the toolkit lacks cuRAND's headers (FA3 wants them)  | links to those of the nvidia-curand wheel|
| `ninja` was installed beside this Python, off PATH   | that folder joins the PATH               |
| there is no GPU to ask for its architecture          | FLASHINFER_CUDA_ARCH_LIST                |
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

# Where FlashInfer looks as well when nothing says where the toolkit is.
USUAL_HOME = Path("/usr/local/cuda")


class ToolchainError(RuntimeError):
    """Something needed for compiling is missing; the message says what would help."""


def find_cuda_home(environment: Mapping[str, str]) -> Path:
    """Folder of the CUDA toolkit: CUDA_HOME, the one that the `nvcc` on the PATH belongs to, or the
    usual one."""
    named = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if named:
        home = Path(named)
    elif nvcc := shutil.which("nvcc", path=environment.get("PATH")):
        home = _home_of(nvcc)
    elif (USUAL_HOME / "bin" / "nvcc").exists():
        home = USUAL_HOME
    else:
        raise ToolchainError("no nvcc on the PATH: install a CUDA toolkit or set CUDA_HOME")
    if not (home / "bin" / "nvcc").exists():
        raise ToolchainError(f"expected {home}/bin/nvcc: set CUDA_HOME to a CUDA toolkit's folder")
    return home


def _home_of(nvcc: str) -> Path:
    """Toolkit folder by nvcc's own account; a dry run prints it as TOP and starts no compiler."""
    with tempfile.NamedTemporaryFile(suffix=".cu") as source:
        command = [nvcc, "--dryrun", "-c", source.name]
        result = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.+)$", result.stderr, re.MULTILINE)
    return Path(found[1].strip()).resolve() if found else Path(nvcc).resolve().parent.parent


def prepare(arch: str, work: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to the environment before flashinfer is imported.

    `work` receives the links, the empty library and FlashInfer's own build folders.
    """
    home = find_cuda_home(environment)
    libraries, headers = work / "lib", work / "include"
    for folder in (libraries, headers):
        folder.mkdir(parents=True, exist_ok=True)
    _supply_libcuda(home, libraries)
    _supply_libcudart(home, libraries)
    _supply_curand(home, headers)
    tools = [str(Path(sys.executable).parent), environment.get("PATH", "")]
    return {
        "CUDA_HOME": str(home),
        "PATH": os.pathsep.join(tools),
        "FLASHINFER_CUDA_ARCH_LIST": arch,
        "FLASHINFER_WORKSPACE_BASE": str(work),
        "FLASHINFER_EXTRA_LDFLAGS": _joined(environment, "LDFLAGS", f"-L{libraries}"),
        "FLASHINFER_EXTRA_CUDAFLAGS": _joined(environment, "CUDAFLAGS", f"-isystem {headers}"),
    }


def _joined(environment: Mapping[str, str], name: str, flag: str) -> str:
    return " ".join(filter(None, (environment.get(f"FLASHINFER_EXTRA_{name}"), flag)))


def _library_folders(home: Path) -> Iterable[Path]:
    return (home / name for name in ("lib64", "lib64/stubs", "lib"))


def _supply_libcuda(home: Path, target: Path) -> None:
    """An empty libcuda.so unless the toolkit has its stub; modules find the real one at run time.

    Its soname is the driver's, so that what is linked against it asks for the driver's library.
    """
    library = target / "libcuda.so"
    if library.exists() or any((f / "libcuda.so").exists() for f in _library_folders(home)):
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ToolchainError("no C compiler on the PATH: install one")
    flags = ["-shared", "-Wl,-soname,libcuda.so.1", "-o", str(library), "-x", "c", os.devnull]
    subprocess.run([compiler, *flags], check=True)


def _supply_libcudart(home: Path, target: Path) -> None:
    """A plain-named link where the toolkit has a versioned libcudart only."""
    library = target / "libcudart.so"
    folders = list(_library_folders(home))
    if library.exists() or any((folder / library.name).exists() for folder in folders):
        return
    versions = sorted(path for folder in folders for path in folder.glob("libcudart.so.*"))
    if not versions:
        raise ToolchainError(f"no libcudart under {home}: install the CUDA runtime library")
    library.symlink_to(versions[-1].resolve())


def _supply_curand(home: Path, target: Path) -> None:
    """Links to cuRAND's headers, and to these alone, from an installed wheel.

    The wheel's folder holds headers of other packages too, of possibly another CUDA version.
    """
    if (home / "include" / "curand_kernel.h").exists():
        return
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = [path for root in roots for path in root.glob("*/include/curand*.h")]
    for header in found:
        link = target / header.name
        if not link.exists():
            link.symlink_to(header)
