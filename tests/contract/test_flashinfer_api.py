"""What this project calls of FlashInfer and of SGLang's kernels is there, as it was when read."""

import ast
import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fa3_on_host
import pytest

with warnings.catch_warnings(action="ignore"):
    from flashinfer import decode, prefill
    from flashinfer.jit import env, xqa
    from flashinfer.jit.attention import gen_customize_batch_prefill_module, modules
    from flashinfer.jit.attention.variants import attention_sink_decl

    from flashinfer_ext import versions
    from flashinfer_ext.plan import WRAPPER_FIELDS

DECODE = decode.BatchDecodeWithPagedKVCacheWrapper
PREFILL = prefill.BatchPrefillWithPagedKVCacheWrapper

# Parameters by position, from the first on, and those that are given by name.
CALLS: list[tuple[Callable[..., Any], str, str]] = [
    (
        DECODE.__init__,
        "self float_workspace_buffer",
        "use_cuda_graph use_tensor_cores paged_kv_indptr_buffer paged_kv_indices_buffer "
        "paged_kv_last_page_len_buffer backend",
    ),
    (
        DECODE._plan_impl,
        "self indptr indices last_page_len num_qo_heads num_kv_heads head_dim page_size",
        "sm_scale window_left logits_soft_cap q_data_type kv_data_type",
    ),
    (DECODE.run, "self q paged_kv_cache args", "k_scale v_scale out"),
    (
        PREFILL.__init__,
        "self float_workspace_buffer",
        "use_cuda_graph qo_indptr_buf paged_kv_indptr_buf paged_kv_indices_buf "
        "paged_kv_last_page_len_buf backend jit_args jit_kwargs variant_owns_mask",
    ),
    (
        PREFILL.plan,
        "self qo_indptr paged_kv_indptr paged_kv_indices paged_kv_last_page_len num_qo_heads "
        "num_kv_heads head_dim_qk page_size",
        "head_dim_vo causal sm_scale window_left logits_soft_cap q_data_type kv_data_type",
    ),
    (PREFILL.run, "self q paged_kv_cache args", "k_scale v_scale out"),
    (
        decode.xqa_batch_decode_with_kv_cache,
        "query kv_cache workspace_buffer block_tables seq_lens max_seq_len",
        "bmm1_scale bmm2_scale window_left out sinks",
    ),
    (
        gen_customize_batch_prefill_module,
        "backend uri dtype_q dtype_kv dtype_o idtype head_dim_qk head_dim_vo "
        "additional_tensor_names additional_tensor_dtypes additional_scalar_names "
        "additional_scalar_dtypes variant_name variant_decl",
        "use_sliding_window paged_kv_stride_mode module_surface",
    ),
    (
        modules.gen_batch_decode_module,
        "dtype_q dtype_kv dtype_o dtype_idx head_dim_qk head_dim_vo pos_encoding_mode "
        "use_sliding_window use_logits_soft_cap",
        "",
    ),
    (
        modules._gen_batch_prefill_primary_module,
        "backend dtype_q dtype_kv dtype_o dtype_idx head_dim_qk head_dim_vo pos_encoding_mode "
        "use_sliding_window use_logits_soft_cap use_fp16_qk_reduction",
        "",
    ),
    (
        modules._gen_batch_prefill_independent_paged_module,
        "backend dtype_q dtype_kv dtype_o dtype_idx head_dim_qk head_dim_vo pos_encoding_mode "
        "use_sliding_window use_logits_soft_cap use_fp16_qk_reduction",
        "",
    ),
    (
        modules.gen_batch_mla_module,
        "backend dtype_q dtype_kv dtype_o dtype_idx head_dim_ckv head_dim_kpe use_profiler",
        "",
    ),
    (
        xqa.gen_xqa_module,
        "input_dtype kv_cache_dtype page_size head_dim head_group_ratio use_sliding_window "
        "output_dtype",
        "",
    ),
]


def test_the_version_is_one_that_was_read() -> None:
    """`versions.py` has what differs; the tests of plans compare with the one that is installed."""
    assert versions.installed() == version("flashinfer_python")
    assert version("flashinfer_python") in versions.KNOWN


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import flashinfer

    versions.installed.cache_clear()
    try:
        for found, known in (("0.7.2.post1", "0.7.2"), ("0.7.4+cu130", "0.7.4")):
            monkeypatch.setattr(flashinfer, "__version__", found)
            assert versions.installed() == known
            versions.installed.cache_clear()
        for found in ("0.7.3", "0.7.20", "0.8.0"):
            monkeypatch.setattr(flashinfer, "__version__", found)
            with pytest.raises(RuntimeError, match=f"expected 0.7.2 or 0.7.4, got {found}"):
                versions.installed()
    finally:
        versions.installed.cache_clear()


@pytest.mark.parametrize(("wrapper", "is_decode"), [(DECODE, True), (PREFILL, False)])
def test_the_planner_ends_as_the_installed_version_says(wrapper: Any, is_decode: bool) -> None:
    tail = versions.fa2_planner_tail(versions.installed(), is_decode)
    has_flag = "# fixed_uniform_q_len" in inspect.getsource(wrapper)
    assert len(tail) == (5 if has_flag else 4)


def test_the_tails_of_both_versions() -> None:
    assert [versions.fa2_planner_tail("0.7.2", kind) for kind in (True, False)] == [
        [-1, False, 0, 0],
        [-1, False, 0, 0],
    ]
    assert [versions.fa2_planner_tail("0.7.4", kind) for kind in (True, False)] == [
        [-1, False, 0, 1, True],
        [-1, False, 0, 0, False],
    ]


@pytest.mark.parametrize(("function", "positions", "names"), CALLS)
def test_parameters_are_where_they_were(
    function: Callable[..., Any], positions: str, names: str
) -> None:
    found = list(inspect.signature(function).parameters)
    first = positions.split()
    assert found[: len(first)] == first, function.__qualname__
    assert set(names.split()) <= set(found), function.__qualname__


def test_decode_hands_its_plan_on_by_name() -> None:
    """`plan` takes the arrays and heads by position and everything else by name."""
    kinds = inspect.signature(DECODE.plan).parameters
    assert kinds["deprecated_positional_args"].kind is inspect.Parameter.VAR_POSITIONAL
    assert kinds["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


def test_wrappers_keep_what_is_set_on_them() -> None:
    for wrapper in (DECODE, PREFILL):
        source = inspect.getsource(wrapper)
        missing = [name for name in WRAPPER_FIELDS if f"self.{name}" not in source]
        assert not missing, wrapper.__name__
    assert "_qo_indptr_last" in inspect.getsource(PREFILL.run)


def test_the_variant_and_the_folder_of_built_modules_are_there() -> None:
    assert {"fa2", "fa3"} <= set(attention_sink_decl)
    assert hasattr(env, "FLASHINFER_AOT_DIR")


def test_sglangs_kernels_take_what_they_are_given() -> None:
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd
    from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton

    for function, positions, names in (
        (
            decode_attention_fwd,
            "q k_buffer v_buffer o kv_indptr kv_indices attn_logits attn_lse num_kv_splits "
            "max_kv_splits sm_scale k_scale v_scale",
            "logit_cap sinks xai_temperature_len",
        ),
        (
            extend_attention_fwd,
            "q_extend k_extend v_extend o_extend k_buffer v_buffer qo_indptr kv_indptr "
            "kv_indices custom_mask is_causal mask_indptr max_len_extend k_scale v_scale sm_scale",
            "logit_cap sliding_window_size sinks xai_temperature_len",
        ),
        (
            get_num_kv_splits_triton.fn,
            "num_kv_splits_ptr seq_lens_ptr num_seq num_group num_head num_kv_head max_kv_splits "
            "device_core_count",
            "MAX_NUM_SEQ",
        ),
    ):
        test_parameters_are_where_they_were(function, positions, names)


def test_sglang_asks_a_backend_for_what_ours_answer() -> None:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

    from jenga_sglang.adapter.attention.device_backend import DeviceBackend

    for name in (
        "init_forward_metadata",
        "init_forward_metadata_out_graph",
        "init_cuda_graph_state",
        "get_cuda_graph_seq_len_fill_value",
    ):
        stock = list(inspect.signature(getattr(AttentionBackend, name)).parameters)
        assert list(inspect.signature(getattr(DeviceBackend, name)).parameters) == stock, name
    first = ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"]
    for name in ("forward_extend", "forward_decode"):
        for owner in (AttentionBackend, DeviceBackend):
            assert list(inspect.signature(getattr(owner, name)).parameters)[:7] == first


def test_sglangs_fa3_takes_what_ours_gives_it() -> None:
    """Read, not imported: its package loads compiled code for a GPU."""
    spec = find_spec("sgl_kernel")
    assert spec is not None and spec.submodule_search_locations
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "flash_attn.py").read_text())
    (kernel,) = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "flash_attn_with_kvcache"
    )
    theirs = [argument.arg for argument in kernel.args.args]
    ours = inspect.signature(fa3_on_host.flash_attn_with_kvcache).parameters
    assert theirs[:3] == list(ours)[:3] and set(ours) <= set(theirs)
