"""`jenga plan --exact` builds SGLang's classes without weights: the groups that it finds are those
that the fields of the config say."""

import json
from pathlib import Path

import pytest

from jenga_sglang.core.cut.geometry import LayerGroupSpec
from jenga_sglang.plan.exact import as_a_server_finds_it
from jenga_sglang.plan.fields import ConfigError
from jenga_sglang.plan.model import ReadOptions, read_model

CONFIGS = Path(__file__).parents[1] / "configs"
SAMPLE = "qwen3-next-80b"
# The others of the folder are excerpts without fields that SGLang's classes ask for.
BUILT = (
    *("command-r7b", "falcon-h1-7b", "gemma-3-27b", "gemma-3n-e4b", "glm-4.5-air"),
    *("gpt-oss-120b", "gpt-oss-20b", "kimi-linear-48b", "lfm2-1.2b", "llama-3.1-8b"),
    *("llama-4-scout", "mistral-7b-v0.1", "mixtral-8x7b", "nemotron-h-8b"),
    *("nemotron-nano-9b-v2", "olmo-3-7b", "phi-3-mini-4k", "phi-4-mini", "qwen3-30b-a3b"),
    *("qwen3-next-80b", "seed-oss-36b", "smollm3-3b"),
)
# These classes read one token more than the window of the config.
SEES_MORE = {"command-r7b", "gemma-3n-e4b"}


def shapes(specs: tuple[LayerGroupSpec, ...], more: int = 0) -> set[tuple[object, ...]]:
    return {
        (
            str(s.dependency).replace(f"window {w}", f"window {w + more}")
            if (w := getattr(s.dependency, "window", 0))
            else str(s.dependency),
            s.layers,
            s.k_bytes,
            s.v_bytes,
            sum(s.state_bytes),
        )
        for s in specs
    }


@pytest.mark.parametrize(
    "name",
    [name if name == SAMPLE else pytest.param(name, marks=pytest.mark.long) for name in BUILT],
)
def test_a_class_has_the_layers_that_its_config_says(name: str) -> None:
    path = CONFIGS / f"{name}.json"
    model = read_model(path)
    found = as_a_server_finds_it(model, path, ReadOptions())
    assert shapes(found.specs) == shapes(model.specs, int(name in SEES_MORE))


def test_a_model_that_a_server_refuses(tmp_path: Path) -> None:
    """With DeepSeek-V3.2's index of keys, which the reader of fields refuses, too."""
    raw = json.loads((CONFIGS / "deepseek-v3.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    model = read_model(path)
    raw |= {"index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64}
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="has sparse latent attention"):
        as_a_server_finds_it(model, path, ReadOptions())
