"""Compile the package's FlashInfer modules ahead of time; no GPU is needed.

    python -m flashinfer_ext.aot --arch 9.0a --list
    python -m flashinfer_ext.aot --arch 9.0a --only '*sink_fa2*d_64*'
    python -m flashinfer_ext.aot --arch 9.0a --stock --out prebuilt

Each module becomes `OUT/<arch>/<uri>/<uri>.so`, which `variants.use_prebuilt(OUT/<arch>)` makes
FlashInfer load. A second run compiles what has changed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import toolchain
from .variants import Variant

DEFAULT_OUT = Path(".cache") / "flashinfer"


@dataclass(frozen=True)
class Module:
    """A module to compile. `spec` writes its sources and returns FlashInfer's JitSpec."""

    name: str
    spec: Callable[[], Any]


def variant_modules() -> list[Module]:
    """Sinks as gpt-oss has them (head_dim 64), bf16 and fp8 KV; page masks for common head dims."""
    bf16, fp8 = torch.bfloat16, torch.float8_e4m3fn
    variants = [Variant("sink", bf16, kv, 64, 64, w) for kv in (bf16, fp8) for w in (True, False)]
    variants += [Variant("sink", bf16, bf16, 64, 64, w, "fa3") for w in (True, False)]
    variants += [
        Variant("page_mask", bf16, bf16, d, d, w) for d in (128, 256) for w in (False, True)
    ]
    return [Module(variant.uri, variant.spec) for variant in variants]


def stock_modules() -> list[Module]:
    """FlashInfer's own modules that `plan.py` asks for: bf16, head_dim 128 and 256."""
    bf16 = torch.bfloat16
    modules = []
    for dim in (128, 256):
        for window in (False, True):
            tail = (bf16, bf16, bf16, torch.int32, dim, dim, 0, window, False)
            suffix = f"d_{dim}_{dim}_swa_{int(window)}"
            modules.append(Module(f"stock_decode_fa2_{suffix}", _stock("decode", tail)))
            modules.append(Module(f"stock_prefill_fa2_{suffix}", _stock("fa2", (*tail, False))))
            modules.append(Module(f"stock_prefill_fa3_{suffix}", _stock("fa3", (*tail, False))))
    return modules


def _stock(kind: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    def spec() -> Any:
        from flashinfer.jit.attention import modules

        if kind == "decode":
            return modules.gen_batch_decode_module(*arguments)
        if kind == "fa2":
            return modules._gen_batch_prefill_primary_module(kind, *arguments)
        return modules.gen_batch_prefill_module(kind, *arguments)

    return spec


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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flashinfer_ext.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arch", required=True, help="CUDA architecture, 9.0a for H100 and H200")
    parser.add_argument("--list", action="store_true", help="print the modules, compile nothing")
    parser.add_argument("--only", action="append", default=[], help="name pattern; repeatable")
    parser.add_argument("--stock", action="store_true", help="FlashInfer's own modules as well")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"default: {DEFAULT_OUT}")
    parser.add_argument("--verbose", action="store_true", help="show the compiler's commands")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    modules = chosen(variant_modules() + (stock_modules() if options.stock else []), options.only)
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
