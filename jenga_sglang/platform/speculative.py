"""Speculative decoding on a CPU: stock SGLang's has kernels of other devices only.

Algorithms with a draft model make chains here; what a table of n-grams proposes may be a tree.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

from jenga_sglang.platform import draft_slots, draft_trees
from jenga_sglang.platform.late import after_import

ALGORITHMS = ("NGRAM", "STANDALONE", "EAGLE", "EAGLE3")

_KERNELS = "sglang.kernels.ops.speculative"
# By module, the functions that take the place of its own.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    f"{_KERNELS}.spec_tree": (
        draft_trees.build_tree_kernel_efficient_func,
        draft_trees.verify_tree_greedy_func,
    ),
    f"{_KERNELS}.cache_locs": (
        draft_slots.assign_draft_cache_locs_contiguous_func,
        draft_slots.fill_front_out_cache_loc_func,
    ),
    f"{_KERNELS}.eagle": (
        draft_slots.fill_accept_out_cache_loc_func,
        draft_slots.fill_bonus_tokens_func,
    ),
    f"{_KERNELS}.gather_spec_extras": (draft_slots.gather_spec_extras,),
    f"{_KERNELS}.verify_sampling": (draft_trees.tree_speculative_sampling_target_only,),
    "sglang.kernels.ops.sampling.renorm": (
        draft_trees.top_k_renorm_prob,
        draft_trees.top_p_renorm_prob,
    ),
    "sglang.srt.mem_cache.allocation": (draft_slots.assign_req_to_token_pool_func,),
}


def install() -> None:
    """Change modules as they are imported; most servers never import these."""
    for name, functions in _FUNCTIONS.items():
        after_import(name, partial(_put, functions))
    # This one cannot be imported at all where there are no kernels.
    name = f"{_KERNELS}.reconstruct_tree"
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        _put((draft_trees.reconstruct_indices_from_tree_mask_func,), sys.modules[name])
    after_import("sglang.srt.mem_cache.memory_pool", _move_rows_in_torch)
    after_import("sglang.srt.layers.attention.torch_native_backend", _let_torch_verify)
    after_import("sglang.srt.speculative.draft_utils", _let_torch_draft)


def _put(functions: Sequence[Any], module: Any) -> None:
    """Into ``module``, and wherever SGLang has imported its own from there by now."""
    for function in functions:
        name = function.__name__
        own = vars(module).get(name, function)
        for other in (module, *_importers(name, own)):
            setattr(other, name, function)


def _importers(name: str, value: Any) -> list[ModuleType]:
    """Imported modules of SGLang in which ``name`` is ``value``."""
    loaded = [module for key, module in list(sys.modules.items()) if key.startswith("sglang.")]
    return [module for module in loaded if vars(module).get(name, module) is value]


def _move_rows_in_torch(module: Any) -> None:
    """SGLang would compile a kernel that moves rows, as soon as it is to draft."""

    def prepare(pool: Any) -> None:
        pool._kv_copy_config = None

    def move(pool: Any, tgt_loc: Any, src_loc: Any) -> None:
        module.move_kv_cache_native(pool.k_buffer, pool.v_buffer, tgt_loc, src_loc)

    module.MHATokenToKVPool._init_kv_copy_and_warmup = prepare
    module.MHATokenToKVPool._move_kv_cache_impl = move


def _let_torch_verify(module: Any) -> None:
    from jenga_sglang.platform.draft_attention import DraftingTorchBackend

    module.TorchNativeAttnBackend = DraftingTorchBackend


def _let_torch_draft(module: Any) -> None:
    # First, for it is what the other is made of.
    importlib.import_module("sglang.srt.layers.attention.torch_native_backend")
    from jenga_sglang.platform.draft_attention import with_torch_backend

    factory = module.DraftBackendFactory
    factory._create_backend = with_torch_backend(factory._create_backend)
