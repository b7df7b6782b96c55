"""The stand-in for SGLang that GPU tests use where SGLang is missing says what SGLang says."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHIM = Path(__file__).parents[1] / "gpu" / "shim"
NAMES = {
    "srt.constants": ["GPU_MEMORY_TYPE_KV_CACHE"],
    "srt.environ": ["envs"],
    "srt.layers.attention.base_attn_backend": ["AttentionBackend", "SharedReadEnds"],
    "srt.layers.radix_attention": ["AttentionType", "RadixAttention"],
    "srt.managers.schedule_batch": ["Modality"],
    "srt.mem_cache.memory_pool": ["KVCache", "MambaPool", "ReqToTokenPool"],
    "srt.model_executor.forward_batch_info": ["ForwardMode"],
    "srt.runtime_context": ["get_exec", "get_schedule", "max_prefill_buffer_tokens"],
    "srt.utils": ["get_cuda_graph_max_batch_size", "get_device_core_count", "is_cuda", "is_hip"],
}


@pytest.fixture(scope="module")
def shim() -> Iterator[dict[str, Any]]:
    """The stand-in's modules by name; SGLang's own are back in their place after."""
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if is_sglang(name)}
    sys.path.insert(0, str(SHIM))
    try:
        yield {name: importlib.import_module(f"sglang.{name}") for name in NAMES}
    finally:
        sys.path.remove(str(SHIM))
        for name in [name for name in sys.modules if is_sglang(name)]:
            del sys.modules[name]
        sys.modules.update(real)


def is_sglang(name: str) -> bool:
    return name.split(".")[0] == "sglang"


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    return {name: importlib.import_module(f"sglang.{name}") for name in NAMES}


def test_it_has_every_name_and_sglang_too(real: Any, shim: Any) -> None:
    for module, names in NAMES.items():
        for name in names:
            assert hasattr(shim[module], name) and hasattr(real[module], name), name
        assert str(SHIM) in shim[module].__file__ and str(SHIM) not in real[module].__file__


def test_shared_reads_end_where_sglang_says(real: Any, shim: Any) -> None:
    module = "srt.layers.attention.base_attn_backend"
    ours, theirs = (side[module].SharedReadEnds for side in (shim, real))
    assert {end.name: end.value for end in ours} == {end.name: end.value for end in theirs}


def test_calls_take_what_sglangs_take(real: Any, shim: Any) -> None:
    for module, name, method in (
        ("srt.layers.radix_attention", "RadixAttention", "__init__"),
        ("srt.mem_cache.memory_pool", "KVCache", "__init__"),
        ("srt.layers.attention.base_attn_backend", "AttentionBackend", "forward"),
    ):
        ours, theirs = (
            list(inspect.signature(getattr(getattr(side[module], name), method)).parameters)
            for side in (shim, real)
        )
        assert [p for p in theirs if p in ours] == ours, name


def test_layers_say_the_same_of_themselves(real: Any, shim: Any) -> None:
    arguments: dict[str, Any] = {"v_head_dim": 8, "sliding_window_size": 7, "logit_cap": 2.0}
    layers = [
        side["srt.layers.radix_attention"].RadixAttention(4, 16, 0.5, 2, 3, **arguments)
        for side in (shim, real)
    ]
    ours, theirs = (
        {name: value for name, value in vars(layer).items() if not name.startswith("_")}
        for layer in layers
    )
    assert ours.pop("attn_type").value == theirs.pop("attn_type").value
    ours.pop("training")
    assert ours == {name: theirs[name] for name in ours}


def test_constants_and_modes_are_sglangs(real: Any, shim: Any) -> None:
    modes = [side["srt.model_executor.forward_batch_info"].ForwardMode for side in (shim, real)]
    assert {mode.name: int(mode) for mode in modes[0]}.items() <= {
        mode.name: int(mode) for mode in modes[1]
    }.items()
    kinds = [side["srt.layers.radix_attention"].AttentionType for side in (shim, real)]
    assert [kind.value for kind in kinds[0]] == [kind.value for kind in kinds[1]]
    tags = [side["srt.constants"].GPU_MEMORY_TYPE_KV_CACHE for side in (shim, real)]
    assert tags[0] == tags[1]
