"""What `jenga plan` takes for granted about the installed SGLang and Transformers."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang

from jenga_sglang.plan import stock
from jenga_sglang.plan.defaults import CLASS_DEFAULTS
from jenga_sglang.plan.fields import Fields
from jenga_sglang.plan.model import model_from_config
from jenga_sglang.plan.served import served_architectures
from jenga_sglang.plan.states import read_state_bytes

MODELS = Path(sglang.__file__).parent / "srt" / "models"
CONFIGS = Path(__file__).parents[1] / "configs"


def model_sources() -> Iterator[tuple[Path, str]]:
    for path in sorted(MODELS.glob("*.py")):
        yield path, path.read_text()


def source_of(architecture: str) -> str:
    pattern = re.compile(rf"^class {architecture}\(", re.MULTILINE)
    return next(text for _, text in model_sources() if pattern.search(text))


@pytest.mark.parametrize("architecture", sorted(stock.IGNORES_WINDOW))
def test_a_class_that_ignores_windows_passes_none_to_its_attention(architecture: str) -> None:
    assert "sliding_window_size=" not in source_of(architecture)


def test_the_architectures_with_a_class_are_those_of_the_sources() -> None:
    """Every one is a class somewhere; those that the papers measure and SGLang lacks are none."""
    served = served_architectures()
    text = "\n".join(text for _, text in model_sources())
    whole = "\n".join(path.read_text() for path in MODELS.rglob("*.py"))
    classes = set(re.findall(r"^class (\w+)", whole, re.MULTILINE))
    assert len(served) > 200 and served <= classes, served - classes
    entries = len(re.findall(r"^EntryClass\b", text, re.MULTILINE))
    assert entries == sum(1 for _, text in model_sources() if "\nEntryClass = " in text)
    for architecture in ("BambaForCausalLM", "HymbaForCausalLM", "JambaForCausalLM"):
        assert architecture not in served and architecture not in classes
    assert {"LlamaForCausalLM", "Gemma3ForConditionalGeneration"} <= served


def test_the_architectures_with_a_window_pool_are_those_of_sglang() -> None:
    from sglang.srt.configs.model_config import is_hybrid_swa_model

    text_config = SimpleNamespace(sliding_window=128, layer_types=["sliding_attention"])
    for architecture in stock.WINDOW_POOL:
        assert is_hybrid_swa_model([architecture], text_config), architecture
    for path in CONFIGS.glob("*.json"):
        (architecture,) = json.loads(path.read_text())["architectures"]
        expected = architecture in stock.WINDOW_POOL
        assert bool(is_hybrid_swa_model([architecture], SimpleNamespace())) == expected, path.name


def test_sglang_s_default_ratios_and_state_slots() -> None:
    from sglang.srt.mem_cache.allocation_sizing import get_mamba_tracking_slots
    from sglang.srt.mem_cache.kv_cache_configurator import (
        MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO,
    )

    fields = (MODELS.parent / "arg_groups" / "fields" / "schedule.py").read_text()
    for name, ratio in (
        ("swa_full_tokens_ratio", stock.DEFAULT_WINDOW_RATIO),
        ("mamba_full_memory_ratio", stock.DEFAULT_STATE_RATIO),
    ):
        field = fields[fields.index(f"\n    {name}:") :]
        assert re.search(r"fallback=([\d.]+)", field)[1] == str(ratio)  # type: ignore[index]
    tracking = get_mamba_tracking_slots(extra_buffer=True, overlap=True)
    assert MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO + tracking == stock.STATES_PER_REQUEST


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(
    "name",
    ["qwen3-next-80b", "kimi-linear-48b", "nemotron-nano-9b-v2", "falcon-h1-7b", "lfm2-1.2b"],
)
def test_states_have_the_shape_of_sglang_s_pools(
    name: str, tp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, class_name = {
        "qwen3-next-80b": ("qwen3_next", "Qwen3NextConfig"),
        "kimi-linear-48b": ("kimi_linear", "KimiLinearConfig"),
        "nemotron-nano-9b-v2": ("nemotron_h", "NemotronHConfig"),
        "falcon-h1-7b": ("falcon_h1", "FalconH1Config"),
        "lfm2-1.2b": ("lfm2", "Lfm2Config"),
    }[name]
    configs: Any = importlib.import_module(f"sglang.srt.configs.{module}")
    parallel = SimpleNamespace(attn_tp_size=tp)
    monkeypatch.setattr(configs, "get_parallel", lambda: parallel)
    monkeypatch.setattr(configs, "linear_attn_tp_size", lambda: tp, raising=False)
    monkeypatch.setattr(configs, "_is_cpu", False, raising=False)
    raw = json.loads((CONFIGS / f"{name}.json").read_text())
    raw = {key: value for key, value in raw.items() if not key.startswith("_")}
    if name.startswith("nemotron"):  # the model's own code names them so; SGLang's class does not
        raw |= {"mamba_n_groups": raw["n_groups"], "mamba_d_conv": raw["conv_kernel"]}
    config = getattr(configs, class_name)(**raw)
    params = config.mamba2_cache_params
    defaults = CLASS_DEFAULTS.get(raw["model_type"])
    layer_bytes = sum(read_state_bytes(Fields(raw, defaults=defaults), tp, None))
    assert layer_bytes * len(params.layers) == params.mamba_cache_per_req


@pytest.mark.parametrize("model_type", sorted(CLASS_DEFAULTS))
def test_defaults_are_those_of_the_config_classes(model_type: str) -> None:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    for name, value in CLASS_DEFAULTS[model_type].items():
        if name in ("sliding_window_pattern", "full_attention_interval"):
            assert period_of_full_layers(config.layer_types) == value
        elif model_type == "gemma4_text" and name.endswith("head_dim"):
            layer = config.layer_types.index(
                "full_attention" if name.startswith("global") else "sliding_attention"
            )
            assert config.per_layer_config[layer].head_dim == value
        else:
            assert getattr(config, name) == value, name


def period_of_full_layers(layer_types: list[str]) -> int:
    return layer_types.index("full_attention") + 1


def test_configs_as_the_installed_transformers_saves_them() -> None:
    """Gemma-4's full layers by number, and LongCat's two attentions a layer."""
    from transformers import Gemma4TextConfig, LongcatFlashConfig

    gemma = Gemma4TextConfig(
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        global_head_dim=128,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
    )
    window, full = model_from_config(json.loads(gemma.to_json_string()), "gemma").specs
    assert (len(full.layers), full.k_bytes, full.v_bytes) == (1, 2 * 128 * 2, 2 * 128 * 2)
    assert (len(window.layers), window.k_bytes) == (5, 8 * 64 * 2)
    longcat = LongcatFlashConfig(num_layers=3, kv_lora_rank=32, qk_rope_head_dim=16)
    (latent,) = model_from_config(json.loads(longcat.to_json_string()), "longcat").specs
    assert (len(latent.layers), latent.k_bytes, latent.v_bytes) == (2 * 3, 48 * 2, 0)
