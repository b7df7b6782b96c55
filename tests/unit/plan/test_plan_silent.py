"""Configs that say what they keep where a reader of fields does not look: right, or refused.

Shapes are those of the released models; every expected number is worked out here by hand.
"""

from pathlib import Path
from typing import Any

import pytest

from jenga_sglang.plan.fields import ConfigError
from jenga_sglang.plan.model import Model, ReadOptions, model_from_config
from jenga_sglang.plan.notes import notes
from jenga_sglang.plan.report import make_report
from jenga_sglang.plan.served import served_architectures

KIB, GIB = 1 << 10, 1 << 30
LONGCAT = {
    "architectures": ["LongcatFlashForCausalLM"],
    "model_type": "longcat_flash",
    "num_layers": 28,
    "num_attention_heads": 64,
    "hidden_size": 6144,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 131072,
}
LING = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "hidden_size": 8192,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "layer_group_size": 8,
    "max_position_embeddings": 131072,
}
GEMMA_4_LAYERS = (["sliding_attention"] * 5 + ["full_attention"]) * 10
GEMMA_4 = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma4_text",
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "sliding_window": 1024,
        "layer_types": GEMMA_4_LAYERS,
        "max_position_embeddings": 262144,
        "per_layer_config": {
            str(index): {"head_dim": 512, "num_key_value_heads": 4}
            for index, kind in enumerate(GEMMA_4_LAYERS)
            if kind == "full_attention"
        },
    },
}
SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 1024,
}


def read(raw: dict[str, Any], **options: Any) -> Model:
    return model_from_config(raw, "model", ReadOptions(**options))


def rows(model: Model) -> dict[str, tuple[int, int]]:
    """Layers and bytes of a token in each of them, by group."""
    return {s.name: (len(s.layers), s.k_bytes + s.v_bytes) for s in model.specs}


def test_two_attentions_a_layer_keep_two_rows() -> None:
    """LongCat: 28 layers of two latent attentions, 512 + 64 elements of 2 bytes each: 63 KiB."""
    model = read(LONGCAT)
    assert rows(model) == {"full": (2 * 28, 576 * 2)}
    assert sum(layers * size for layers, size in rows(model).values()) == 63 * KIB
    # Transformers derives another count from it when it saves.
    assert rows(read({**LONGCAT, "num_hidden_layers": 56})) == rows(model)


def test_gemma_4_as_transformers_lists_its_layers() -> None:
    """K and V: 4 heads of 512 in 10 full layers, 16 of 256 in 50 windows, of 2 bytes."""
    full, window = 2 * 4 * 512 * 2, 2 * 16 * 256 * 2
    assert rows(read(GEMMA_4)) == {"window 1024": (50, window), "full": (10, full)}
    assert (full, window) == (8 * KIB, 16 * KIB)


def test_gemma_4_lists_only_what_differs() -> None:
    """Without heads of their own full layers have the others': no default of the class's."""
    listed = {str(index): {"head_dim": 512} for index in range(5, 60, 6)}
    raw = {**GEMMA_4, "text_config": {**GEMMA_4["text_config"], "per_layer_config": listed}}  # type: ignore[dict-item]
    assert rows(read(raw))["full"] == (10, 2 * 16 * 512 * 2)
    raw["text_config"]["per_layer_config"] = {}  # type: ignore[index]
    assert rows(read(raw))["full"] == (10, 2 * 16 * 256 * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (LING, "'layer_group_size': linear attention between layers of full attention"),
        ({"layer_group_size": [1, 1, 0, 0]}, "'layer_group_size'"),
        ({"attn_type_list": [0, 0, 0, 1]}, "'attn_type_list': layers of lightning attention"),
        ({"mixer_types": ["minicpm4", "lightning-attn"]}, "'mixer_types': layers of lightning"),
        ({"linear_attn_alpha_factor": 1}, "'linear_attn_alpha_factor': layers of lightning"),
        ({"index_topk_blocks": 16}, "'index_topk_blocks': an index of keys"),
        ({"sparse_attention_config": {"sparse_index_dim": 128}}, "'sparse_attention_config'"),
        ({"block_configs": [{}]}, "a server prints the same table when it starts"),
    ],
)
def test_what_it_cannot_plan_is_refused_by_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read({**SMALL, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_group_size": 1},
        {"attn_type_list": [1, 1, 1, 1]},  # MiniMax-M2's
        {"mixer_types": ["minicpm4"]},
    ],
)
def test_the_same_fields_may_say_that_all_is_full(changes: dict[str, Any]) -> None:
    assert rows(read({**SMALL, **changes})) == rows(read(SMALL))


def test_the_text_model_of_one_that_hears_and_speaks() -> None:
    """Qwen3-Omni nests it twice: 48 layers, K and V of 4 heads of 128, of 2 bytes."""
    text = {
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "hidden_size": 2048,
        "max_position_embeddings": 65536,
    }
    raw = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "thinker_config": {"text_config": text},
        "talker_config": {"text_config": {"num_hidden_layers": 20}},
    }
    assert rows(read(raw)) == {"full": (48, 2 * 4 * 128 * 2)}
    with pytest.raises(ConfigError, match=r"'thinker_config.text_config.hidden_size' is missing"):
        text = {k: v for k, v in text.items() if k not in ("head_dim", "hidden_size")}
        read({**raw, "thinker_config": {"text_config": text}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["SmolLM3ForCausalLM"]}, "an estimate of what its Transformers backend"),
        ({"architectures": None}, "names no architecture"),
        (
            {
                "architectures": ["JambaForCausalLM"],
                "layers_block_type": ["mamba", "attention"] * 2,
                "mamba_expand": 2,
                "mamba_d_state": 16,
                "mamba_d_conv": 4,
            },
            "SGLang 0.5.23 has no JambaForCausalLM; its rows are what it would do",
        ),
    ],
)
def test_a_model_without_a_class_of_sglangs_is_said_to_be_an_estimate(
    changes: dict[str, Any], said: str
) -> None:
    report = make_report(read({**SMALL, **changes}), GIB, (512,))
    assert any(said in note for note in notes(report)), notes(report)


def test_a_model_with_a_class_is_one_only_as_fields_are() -> None:
    found = [n for n in notes(make_report(read(SMALL), GIB, (512,))) if "stimate" in n]
    (note,) = found
    assert note.startswith("An estimate, from the fields of the config")


def test_without_sglang_nothing_is_known_and_nothing_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from jenga_sglang.plan import served, stock

    monkeypatch.setattr(served, "find_spec", lambda name: None)
    served_architectures.cache_clear()
    try:
        assert served_architectures() == frozenset()
        assert stock.stock_of("AnyForCausalLM").has_class
    finally:
        served_architectures.cache_clear()
