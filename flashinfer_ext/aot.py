"""Compile the package's FlashInfer modules ahead of time; no GPU is needed.

    python -m flashinfer_ext.aot --arch 9.0a --list
    python -m flashinfer_ext.aot --arch 9.0a --only '*sink_fa2*d_64*'
    python -m flashinfer_ext.aot --arch 9.0a --set stock --out prebuilt

Each module becomes `OUT/<arch>/<uri>/<uri>.so`, which `variants.use_prebuilt(OUT/<arch>)` makes
FlashInfer load. A second run compiles what has changed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from . import toolchain
from .modules import SETS, Module
from .variants import use_prebuilt

MODULES_VARIABLE = "JENGA_FLASHINFER_MODULES"
DEFAULT_OUT = Path(".cache") / "flashinfer"


def chosen(modules: list[Module], patterns: Sequence[str]) -> list[Module]:
    """Modules whose name matches one of the patterns; all of them without patterns."""
    if not patterns:
        return modules
    return [m for m in modules if any(fnmatch.fnmatch(m.name, p) for p in patterns)]


def compile_module(module: Module, folder: Path, verbose: bool) -> Path:
    """Compile one module and copy its library to `folder`; returns the library's place."""
    spec = module.spec()
    spec.build(verbose)
    target = folder / spec.name / f"{spec.name}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(spec.jit_library_path, target)
    return target


def build_here(modules: list[Module], out: Path = DEFAULT_OUT) -> None:
    """Compile modules for the GPU at hand, side by side, before flashinfer is first imported.

    Builds in the folder that the command uses, so what the command has compiled is not compiled
    again.
    """
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}.{minor}{'a' if major >= 9 else ''}"
    os.environ.update(toolchain.prepare(arch, out.resolve() / arch / "build", os.environ))
    with warnings.catch_warnings(action="ignore"):
        from flashinfer.jit.core import build_jit_specs

    build_jit_specs([module.spec() for module in modules])


def make_ready(modules: list[Module], out: Path = DEFAULT_OUT) -> None:
    """Have modules for the GPU at hand: those of the folder that JENGA_FLASHINFER_MODULES names,
    or else compiled here. Before flashinfer is first imported."""
    if folder := os.environ.get(MODULES_VARIABLE):
        use_prebuilt(folder)
    else:
        build_here(modules, out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flashinfer_ext.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--arch", type=architecture, required=True, help="of the GPU: 9.0a for H100 and H200"
    )
    parser.add_argument("--list", action="store_true", help="print the modules, compile nothing")
    parser.add_argument("--only", action="append", default=[], help="name pattern; repeatable")
    parser.add_argument(
        "--set",
        choices=sorted(SETS),
        default="variants",
        help="variants: this package's own (default); stock: FlashInfer's; gpu: of the GPU tests; "
        "all of these",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"default: {DEFAULT_OUT}")
    parser.add_argument("--verbose", action="store_true", help="show the compiler's commands")
    return parser.parse_args(arguments)


def architecture(text: str) -> str:
    """``text`` as nvcc's compute capability, for argparse."""
    if not re.fullmatch(r"\d+\.\d[af]?", text):
        raise argparse.ArgumentTypeError(f"expected one such as 9.0a, got {text!r}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    modules = chosen(SETS[options.set](), options.only)
    if options.list:
        print("\n".join(module.name for module in modules))
        return 0
    if not modules:
        print(f"no module matches {options.only}", file=sys.stderr)
        return 1
    folder = options.out.resolve() / options.arch
    try:
        os.environ.update(toolchain.prepare(options.arch, folder / "build", os.environ))
    except toolchain.ToolchainError as error:
        print(error, file=sys.stderr)
        return 1
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for number, module in enumerate(modules, 1):
        start = time.monotonic()
        library = compile_module(module, folder, options.verbose)
        seconds = time.monotonic() - start
        print(f"[{number}/{len(modules)}] {library} ({seconds:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
