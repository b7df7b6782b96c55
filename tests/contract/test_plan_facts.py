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


@pytest.mark.parametrize("architecture", sorted(stock.NOT_SERVED))
def test_what_is_not_served_has_no_class(architecture: str) -> None:
    assert not any(f"class {architecture}(" in text for _, text in model_sources())


def test_the_architectures_with_a_window_pool_are_those_of_sglang() -> None:
    from sglang.srt.configs.model_config import is_hybrid_swa_model

    text_config = SimpleNamespace(sliding_window=128)
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
