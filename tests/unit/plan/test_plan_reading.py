"""Reading configs: where fields hide, and errors that name them."""

import json
from pathlib import Path
from typing import Any

import pytest

from jenga_sglang.plan.fields import ConfigError
from jenga_sglang.plan.model import ReadOptions, model_from_config, read_model

SMALL = {
    "architectures": ["SomeForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 1024,
}


def groups(changes: dict[str, Any], **options: Any) -> dict[str, list[int]]:
    model = model_from_config({**SMALL, **changes}, "small", ReadOptions(**options))
    return {spec.name: list(spec.layers) for spec in model.specs}


def test_without_any_hint_all_layers_are_full() -> None:
    assert groups({}) == {"full": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sliding_window": 8}, {"window 8": [0, 1, 2, 3]}),
        ({"sliding_window": 8, "use_sliding_window": False}, {"full": [0, 1, 2, 3]}),
        (
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            {"full": [0, 1, 2], "window 8": [3]},
        ),
        (
            {"sliding_window": 8, "sliding_window_pattern": 2},
            {"window 8": [0, 2], "full": [1, 3]},
        ),
        (
            {"sliding_window": 8, "sliding_window_pattern": "LLG"},
            {"window 8": [0, 1, 3], "full": [2]},
        ),
        (
            {"sliding_window": 8, "global_attn_every_n_layers": 4},
            {"window 8": [0, 1, 2], "full": [3]},
        ),
        ({"sliding_window": [None, 8, 16]}, {"full": [0, 3], "window 8": [1], "window 16": [2]}),
        ({"sliding_window": [8, 4096]}, {"window 8": [0, 2], "full": [1, 3]}),
        (
            {"attention_chunk_size": 16, "no_rope_layers": [1, 0, 1, 0]},
            {"chunk 16": [0, 2], "full": [1, 3]},
        ),
    ],
)
def test_layer_kinds_are_read_from_any_of_the_fields_that_say_them(
    changes: dict[str, Any], expected: dict[str, list[int]]
) -> None:
    assert groups(changes) == expected


def test_a_window_as_long_as_the_model_is_full_and_joins_the_full_group() -> None:
    changes = {"sliding_window": 8, "sliding_window_pattern": 2}
    assert groups(changes, max_length=8) == {"full": [0, 1, 2, 3]}


def test_groups_of_one_dependency_with_other_rows_are_told_apart() -> None:
    changes = {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window": 4096,
        "swa_num_key_value_heads": 4,
    }
    assert groups(changes) == {"full from layer 0": [0, 2], "full from layer 1": [1, 3]}


def test_no_length_is_needed_when_it_is_given() -> None:
    raw = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
    assert model_from_config(raw, "small", ReadOptions(max_length=512)).max_length == 512


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
        ({"num_hidden_layers": "4"}, "'num_hidden_layers': expected an integer >= 1, got '4'"),
        ({"num_key_value_heads": 0}, "'num_key_value_heads': expected an integer >= 1, got 0"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": 60}, "'head_dim': expected"),
        ({"max_position_embeddings": None}, "'max_position_embeddings' is missing"),
        ({"layer_types": ["full_attention"]}, "'layer_types': expected 4 entries"),
        ({"layer_types": ["full_attention", "magic"] * 2}, r"'layer_types\[1\]': expected one of"),
        ({"layer_types": ["chunked_attention"] * 4}, "'attention_chunk_size' is missing"),
        ({"layer_types": ["sliding_attention"] * 4}, "'sliding_window' is missing"),
        ({"layer_types": ["linear_attention"] * 4}, "none of the fields"),
        ({"layer_types": ["mlp"] * 4}, "no layer has attention"),
        ({"layer_types": ["conv"] * 4, "conv_L_cache": 3}, "no layer has attention"),
        ({"sliding_window": [8, "x"]}, r"'sliding_window\[1\]': expected"),
        ({"sliding_window": []}, "'sliding_window': expected an integer or a list of some"),
        ({"sliding_window": 8, "sliding_window_pattern": "LX"}, "'sliding_window_pattern'"),
        ({"hybrid_override_pattern": "M*Q-"}, "'hybrid_override_pattern'"),
        ({"kv_lora_rank": 512}, "'qk_rope_head_dim' is missing"),
        ({"torch_dtype": "int3"}, "'torch_dtype': expected one of"),
        ({"block_configs": [{}]}, "'block_configs': heads that differ"),
        ({"index_topk": 2048, "kv_lora_rank": 512}, "'index_topk': an index of keys"),
        ({"cross_attention_layers": [1]}, "'vision_config.image_size' is missing"),
        ({"linear_attn_config": {"kda_layers": [1]}}, "'linear_attn_config.head_dim' is missing"),
        ({"layer_types": ["conv"] * 4, "mamba_ssm_dtype": [4]}, "'mamba_ssm_dtype': expected one"),
    ],
)
def test_a_config_that_cannot_be_read_is_an_error_that_names_the_field(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError, match=field):
        groups(changes)


def test_a_nested_field_is_named_with_its_section() -> None:
    with pytest.raises(ConfigError, match=r"'text_config.num_key_value_heads' is missing"):
        model_from_config({"text_config": {"num_hidden_layers": 2, "hidden_size": 8}}, "nested")


GATED_DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 6,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
MAMBA_2 = {
    "layer_types": ["mamba", "full_attention"] * 2,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_key_value_heads": 6}, "num_key_value_heads"),
        (GATED_DELTA_NET, "linear_num_value_heads"),
        ({**MAMBA_2, "mamba_n_heads": 2}, "mamba_n_heads"),
        ({**MAMBA_2, "mamba_n_heads": 5}, "mamba_n_heads"),
    ],
)
def test_heads_that_cannot_be_split_are_an_error(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"'{field}'"):
        groups(changes, tp=4)


def test_a_mamba_layer_may_derive_its_width_from_the_hidden_size() -> None:
    model = model_from_config({**SMALL, **MAMBA_2, "mamba_n_heads": 4}, "granite")
    # 128 channels and B and C of 16 each, times 3 inputs of 2 bytes; 128 x 16 in float32.
    assert model.specs[0].state_bytes == ((128 + 2 * 16) * 3 * 2, 128 * 16 * 4)


def test_a_folder_or_a_file_may_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    assert read_model(folder) == read_model(folder / "config.json")
    assert read_model(folder).name == "my-model"


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "a JSON object")])
def test_what_is_no_config_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_model(tmp_path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_model(tmp_path)
