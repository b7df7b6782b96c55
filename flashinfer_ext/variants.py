"""FlashInfer modules that FlashInfer does not ship, as named JIT specs.

| kind      | what it adds                                    | run() also takes            |
|-----------|-------------------------------------------------|-----------------------------|
| sink      | a logit per head without a value, with a window | sink (Hq,) float32          |
| page_mask | hides single pages of a request                 | page_mask (entries,) uint8  |

Both serve prefill and decode (a decode is a prefill of one token per request). Masks hide pages
from the softmax, not from the loads: a hidden page must hold finite numbers. Where only the oldest
pages are hidden, a shorter table is cheaper and needs no variant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DTYPE_NAMES = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
}

# The mask is the variant's own (MaskMode::kCustom), so causality and window are its business too.
# Ragged kernels are compiled along with the paged ones; they have no pages, hence the overload.
PAGE_MASK_DECL = r"""
template <typename Params>
__device__ __forceinline__ auto page_is_visible(const Params& params, uint32_t batch_idx,
                                                uint32_t kv_idx, int)
    -> decltype(params.paged_kv.indptr[0] != 0) {
  uint32_t page, slot;
  params.paged_kv.page_size.divmod(kv_idx, page, slot);
  return params.page_mask[params.paged_kv.indptr[batch_idx] + page] != 0;
}

template <typename Params>
__device__ __forceinline__ bool page_is_visible(const Params&, uint32_t, uint32_t, long) {
  return true;
}

struct PageMaskedAttention : AttentionVariantBase {
  static constexpr bool use_softmax = true;

  uint32_t qo_len, kv_len, window_left;
  float sm_scale_log2;

  template <typename Params>
  __device__ __host__ PageMaskedAttention(const Params& params, uint32_t batch_idx,
                                          uint8_t* smem_ptr) {
    qo_len = params.get_qo_len(batch_idx);
    kv_len = params.get_kv_len(batch_idx);
    window_left = (params.window_left >= 0) ? params.window_left : kv_len;
    sm_scale_log2 = params.sm_scale * math::log2e;
  }

  REGISTER_LOGITS_MASK(params, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    const bool causal = kv_idx + qo_len <= kv_len + qo_idx;
    const bool inside = kv_idx + qo_len + window_left >= kv_len + qo_idx;
    return causal && inside && page_is_visible(params, batch_idx, kv_idx, 0);
  })
};
"""


@dataclass(frozen=True)
class Variant:
    """One compiled module. Its name holds everything that shapes the code.

    kind: "sink" or "page_mask". backend: "fa2" or "fa3" (sm_90, "sink" only).
    """

    kind: str
    q_dtype: torch.dtype
    kv_dtype: torch.dtype
    head_dim_qk: int
    head_dim_vo: int
    window: bool
    backend: str = "fa2"

    def __post_init__(self) -> None:
        kinds = {"sink": ("fa2", "fa3"), "page_mask": ("fa2",)}
        if self.backend not in kinds.get(self.kind, ()):
            raise ValueError(f"expected a kind and its backend of {kinds}, got {self}")
        if self.backend == "fa3" and self.q_dtype != self.kv_dtype:
            raise ValueError(f"fa3: expected equal dtypes, got {self.q_dtype}, {self.kv_dtype}")

    @property
    def uri(self) -> str:
        """Name of the module, of its folder and of its shared library."""
        dtypes = f"q_{DTYPE_NAMES[self.q_dtype]}_kv_{DTYPE_NAMES[self.kv_dtype]}"
        dims = f"d_{self.head_dim_qk}_{self.head_dim_vo}"
        return f"jenga_{self.kind}_{self.backend}_{dtypes}_{dims}_swa_{int(self.window)}"

    @property
    def owns_mask(self) -> bool:
        """The wrapper must be built with `variant_owns_mask`."""
        return self.kind == "page_mask"

    def jit_args(self) -> list[Any]:
        """`jit_args` of FlashInfer's wrappers."""
        name, declaration, tensor, dtype = self._body()
        return [
            self.uri,
            self.q_dtype,
            self.kv_dtype,
            self.q_dtype,
            torch.int32,
            self.head_dim_qk,
            self.head_dim_vo,
            [tensor],
            [dtype],
            ["sm_scale"],
            ["double"],
            name,
            declaration,
        ]

    def jit_kwargs(self) -> dict[str, Any]:
        """`jit_kwargs` of FlashInfer's prefill wrapper."""
        kwargs: dict[str, Any] = {"use_sliding_window": self.window, "module_surface": "full"}
        if self.backend == "fa2":
            equal = self.head_dim_qk == self.head_dim_vo
            kwargs["paged_kv_stride_mode"] = "equal" if equal else "independent"
        return kwargs

    def spec(self) -> Any:
        """FlashInfer's JitSpec; writes sources, compiles nothing."""
        from flashinfer.jit.attention import gen_customize_batch_prefill_module

        return gen_customize_batch_prefill_module(
            self.backend, *self.jit_args(), **self.jit_kwargs()
        )

    def _body(self) -> tuple[str, str, str, str]:
        """Name and text of the C++ struct, and the tensor it adds."""
        if self.kind == "page_mask":
            return "PageMaskedAttention", PAGE_MASK_DECL, "page_mask", "uint8_t"
        from flashinfer.jit.attention.variants import attention_sink_decl

        return "AttentionSink", attention_sink_decl[self.backend], "sink", "float"


def use_prebuilt(folder: str | Path) -> None:
    """Make FlashInfer load modules from `folder/<uri>/<uri>.so` where one is there.

    The folder comes from `python -m flashinfer_ext.aot --out`; it must be for the GPU at hand, as
    FlashInfer looks at names only. Modules that are not there are compiled as before.
    """
    from flashinfer.jit import env

    path = Path(folder).resolve()
    if not path.is_dir():
        raise ValueError(f"prebuilt modules: expected a folder, got {path}")
    env.FLASHINFER_AOT_DIR = path
