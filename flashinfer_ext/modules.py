"""Lists of FlashInfer modules: this package's variants, and FlashInfer's own that plans ask for.

Listing needs neither flashinfer nor a compiler; `Module.spec()` writes the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .variants import Variant

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@dataclass(frozen=True)
class Module:
    """A module to compile; `spec` returns FlashInfer's JitSpec."""

    name: str
    spec: Callable[[], Any]


def variant_modules() -> list[Module]:
    """Sinks as gpt-oss has them (head_dim 64), bf16 and fp8 KV; page masks for common head dims."""
    windows = (True, False)
    variants = [Variant("sink", BF16, kv, 64, 64, w) for kv in (BF16, FP8) for w in windows]
    variants += [Variant("sink", BF16, BF16, 64, 64, w, "fa3") for w in windows]
    variants += [Variant("page_mask", BF16, BF16, d, d, w) for d in (128, 256) for w in windows]
    return [of_variant(variant) for variant in variants]


def stock_modules() -> list[Module]:
    """What plain, windowed groups of head_dim 128 and 256 in bf16 need on Hopper."""
    kinds = ("decode", "fa2", "fa3")
    return [stock(kind, dim, w) for dim in (128, 256) for w in (True, False) for kind in kinds]


def gpu_test_modules() -> list[Module]:
    """What `tests/gpu` and `benchmarks/kernels` load."""
    windows = (True, False)
    modules = [stock(kind, 128, w) for kind in ("decode", "fa2", "fa3") for w in windows]
    modules += [stock("decode", 128, False, soft_cap=True), stock("fa2", 128, False, kv_dtype=FP8)]
    modules += [stock(kind, 192, False, dim_v=128) for kind in ("fa2", "fa2_independent")]
    modules += [xqa(128, group, w) for group in (2, 4) for w in windows]
    # A backend prefills with FA3 where it can, and decodes with FA2.
    for backend in ("fa2", "fa3"):
        sinks = (Variant("sink", BF16, BF16, 64, 64, w, backend) for w in windows)
        modules += [*map(of_variant, sinks), latent(backend)]
    modules.append(of_variant(Variant("page_mask", BF16, BF16, 128, 128, window=False)))
    modules.append(append())
    return modules


def all_modules() -> list[Module]:
    """Everything that a set names, once."""
    makers = (variant_modules, stock_modules, gpu_test_modules)
    return list({module.name: module for make in makers for module in make()}.values())


SETS = {
    "variants": variant_modules,
    "stock": stock_modules,
    "gpu": gpu_test_modules,
    "all": all_modules,
}


def of_variant(variant: Variant) -> Module:
    return Module(variant.uri, variant.spec)


def stock(
    kind: str,
    head_dim: int,
    window: bool,
    soft_cap: bool = False,
    kv_dtype: torch.dtype = BF16,
    dim_v: int | None = None,
) -> Module:
    """FlashInfer's own module: kind "decode" (CUDA cores), "fa2" or "fa3" (prefill), or
    "fa2_independent", which FlashInfer loads beside "fa2" where strides of K and V differ."""
    dims = (head_dim, dim_v or head_dim)
    tail = (BF16, kv_dtype, BF16, torch.int32, *dims, 0, window, soft_cap)

    def spec() -> Any:
        from flashinfer.jit.attention import modules

        if kind == "decode":
            return modules.gen_batch_decode_module(*tail)
        if kind == "fa2":
            return modules._gen_batch_prefill_primary_module(kind, *tail, False)
        if kind == "fa2_independent":
            return modules._gen_batch_prefill_independent_paged_module("fa2", *tail, False)
        return modules.gen_batch_prefill_module(kind, *tail, False)

    dtype = "e4m3" if kv_dtype == FP8 else "bf16"
    flags = f"swa_{int(window)}_cap_{int(soft_cap)}"
    shape = f"{head_dim}_{dim_v}" if dim_v else f"{head_dim}"
    return Module(f"stock_{kind}_kv_{dtype}_d_{shape}_{flags}", spec)


def xqa(head_dim: int, group_size: int, window: bool, page_size: int = 16) -> Module:
    """FlashInfer's XQA decode in bf16."""

    def spec() -> Any:
        from flashinfer.jit.xqa import gen_xqa_module

        return gen_xqa_module(BF16, BF16, page_size, head_dim, group_size, window, BF16)

    return Module(f"stock_xqa_page_{page_size}_d_{head_dim}_g_{group_size}_swa_{int(window)}", spec)


def latent(backend: str, head_dim: int = 576, dim_v: int = 512) -> Module:
    """FlashInfer's own module for latent rows (MLA) in bf16, "fa2" or "fa3"."""

    def spec() -> Any:
        from .latent import module_spec

        return module_spec(backend, BF16, BF16, dim_v, head_dim)

    return Module(f"stock_latent_{backend}_d_{head_dim}_{dim_v}", spec)


def append() -> Module:
    """FlashInfer's `append_paged_kv_cache`, what a benchmark compares with."""

    def spec() -> Any:
        from flashinfer.jit.page import gen_page_module

        return gen_page_module()

    return Module("stock_append", spec)
