"""Put into one folder what a machine with a GPU lacks, to run there without an install.

    python -m benchmarks.kernels.kit --arch 9.0a --out .cache/gpu-kit

    OUT/site       FlashInfer, as much of it as is imported, and tvm_ffi
    OUT/modules    FlashInfer's modules, compiled for the architecture
    OUT/shim       the names of SGLang that the attention backends use, and its Triton kernels
    OUT/kit.json   versions, modules, those that tests and benchmarks ask for and are missing, sizes

The machine is taken to have torch, Triton, numpy and pytest. No GPU is needed to make it. Modules
are those that `python -m flashinfer_ext.aot` has compiled; the command compiles what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from flashinfer_ext.aot import DEFAULT_OUT, architecture
from flashinfer_ext.aot import main as compile_ahead

MOST_BYTES = 60 << 20
ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "gpu" / "shim"
# What plans, variants and benchmarks import; run where nothing has been imported before.
IMPORTS = """
import warnings
warnings.simplefilter("ignore")
import flashinfer.decode, flashinfer.jit.xqa, flashinfer.page, flashinfer.prefill, flashinfer.xqa
from flashinfer.jit.attention import modules, variants
import sys
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and module.__name__.split(".")[0] == "flashinfer":
        print(file)
"""
NAMES = """
import warnings
warnings.simplefilter("ignore")
from flashinfer_ext.modules import gpu_test_modules
print(*(module.spec().name for module in gpu_test_modules()))
"""
# Sources that a module's name and its place are worked out from; they are not compiled there.
SOURCES = ("batch_*", "page*", "*.jinja", "*.inc", "*.h", "xqa/*")
SGLANG_KERNELS = ("decode_attention", "extend_attention", "metadata", "score_mod")
TVM_FFI_PLATFORM = "manylinux_2_24_x86_64"


def imported_files() -> list[Path]:
    """FlashInfer's files that an import of what we use reads."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True
    )
    return [Path(line) for line in result.stdout.split("\n") if line]


def package_folder(name: str) -> Path:
    """Folder of an installed package; raises RuntimeError where it is not installed."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{name}: expected to be installed, found nothing")
    return Path(next(iter(spec.submodule_search_locations)))


def copy_files(files: Iterable[Path], root: Path, target: Path) -> None:
    """Copy files to the same places below ``target`` as they have below ``root``."""
    for file in files:
        place = target / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)


def copy_flashinfer(site: Path) -> None:
    """FlashInfer's imported Python files, its whole compiler package, and the sources it names."""
    folder = package_folder("flashinfer")
    csrc = folder / "data" / "csrc"
    files = set(imported_files()) | set((folder / "jit").rglob("*.py"))
    files |= {path for pattern in SOURCES for path in csrc.glob(pattern) if path.is_file()}
    copy_files(sorted(files), folder.parent, site)
    copy_files(folder.parent.glob("flashinfer_python-*.dist-info/METADATA"), folder.parent, site)


def copy_tvm_ffi(site: Path, python: str) -> None:
    """tvm_ffi for a Python version such as "3.12": the installed one, or its wheel by pip."""
    if python == sysconfig.get_python_version():
        folder = package_folder("tvm_ffi")
        wanted = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".py", ".so")]
        copy_files(wanted, folder.parent, site)
        return
    name = f"apache-tvm-ffi=={version('apache-tvm-ffi')}"
    where = ["--python-version", python, "--platform", TVM_FFI_PLATFORM]
    only = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), *where, *only]
    subprocess.run([*command, name], check=True)
    for folder in ("include", "share", "3rdparty"):
        shutil.rmtree(site / "tvm_ffi" / folder, ignore_errors=True)


def copy_shim(shim: Path) -> None:
    """The stand-in for SGLang, and SGLang's own attention kernels in Triton."""
    shutil.copytree(SHIM, shim, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    folder = package_folder("sglang")
    kernels = folder / "kernels" / "ops" / "attention"
    copy_files((kernels / f"{name}.py" for name in SGLANG_KERNELS), folder.parent, shim)


def copy_modules(compiled: Path, target: Path) -> list[str]:
    """Compiled modules, as FlashInfer looks for them; returns their names."""
    libraries = sorted(compiled.glob("*/*.so"))
    names = [path.stem for path in libraries if path.parent.name == path.stem]
    copy_files((p for p in libraries if p.stem in names), compiled, target)
    return names


def asked_for(arch: str) -> list[str]:
    """Names of the modules that tests and benchmarks load, as FlashInfer has them."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", NAMES],
            cwd=ROOT,
            env=os.environ
            | {"FLASHINFER_WORKSPACE_BASE": folder, "FLASHINFER_CUDA_ARCH_LIST": arch},
            check=True,
            capture_output=True,
            text=True,
        )
    return result.stdout.split("\n")[-2].split()


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_kit(out: Path, compiled: Path, arch: str, python: str) -> dict[str, object]:
    """Make the folder anew; returns what `kit.json` says. Raises RuntimeError if it is too big."""
    shutil.rmtree(out, ignore_errors=True)
    copy_flashinfer(out / "site")
    copy_tvm_ffi(out / "site", python)
    copy_shim(out / "shim")
    modules = copy_modules(compiled, out / "modules")
    size = folder_bytes(out)
    if size > MOST_BYTES:
        raise RuntimeError(f"{out}: expected at most {MOST_BYTES} bytes, got {size}")
    packages = ("flashinfer-python", "apache-tvm-ffi", "sglang")
    content: dict[str, object] = {
        "arch": arch,
        "python": python,
        "versions": {name: version(name) for name in packages},
        "modules": modules,
        "missing": sorted(set(asked_for(arch)) - set(modules)),
        "bytes": size,
    }
    (out / "kit.json").write_text(json.dumps(content, indent=1) + "\n")
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.kit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arch", type=architecture, default="9.0a", help="default: 9.0a")
    parser.add_argument("--python", default="3.12", help="of the machine; default: 3.12")
    parser.add_argument("--out", type=Path, default=Path(".cache") / "gpu-kit")
    parser.add_argument("--modules", type=Path, default=DEFAULT_OUT, help="folder of `aot --out`")
    parser.add_argument("--only", action="append", default=[], help="as of `aot`; repeatable")
    parser.add_argument("--no-compile", action="store_true", help="take what is compiled already")
    options = parser.parse_args(arguments)
    if not options.no_compile:
        only = [word for pattern in options.only for word in ("--only", pattern)]
        where = ["--arch", options.arch, "--set", "gpu", "--out", str(options.modules)]
        if status := compile_ahead([*where, *only]):
            return status
    content = make_kit(options.out, options.modules / options.arch, options.arch, options.python)
    print(f"{options.out}: {content['bytes']} bytes, modules: {content['modules'] or 'none'}")
    print(f"missing, which fails the tests that need them: {content['missing'] or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
