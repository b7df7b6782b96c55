"""Which layers get the window of a Hugging Face config."""

from types import SimpleNamespace

import pytest
from transformers import MistralConfig, PreTrainedConfig, Qwen2Config

from jenga_sglang.adapter.discovery import apply_config_windows, config_window


def layer(number: int, window: int = -1, *, cross: bool = False) -> SimpleNamespace:
    return SimpleNamespace(layer_id=number, sliding_window_size=window, is_cross_attention=cross)


QWEN = {"num_hidden_layers": 4, "sliding_window": 32, "max_window_layers": 3}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MistralConfig(sliding_window=4096, num_hidden_layers=4), [4096] * 4),
        (MistralConfig(sliding_window=None, num_hidden_layers=4), [None] * 4),
        (Qwen2Config(use_sliding_window=True, **QWEN), [None, None, None, 32]),
        (Qwen2Config(use_sliding_window=False, **QWEN), [None] * 4),
        (PreTrainedConfig(), [None] * 4),
    ],
)
def test_the_window_is_hugging_faces(config: PreTrainedConfig, windows: list[int | None]) -> None:
    assert [config_window(config, number) for number in range(4)] == windows


def test_only_layers_without_a_window_get_one() -> None:
    """SGLang counts the tokens before the query."""
    layers = [layer(0), layer(1, 99), layer(2, cross=True)]
    apply_config_windows(layers, MistralConfig(sliding_window=64))
    assert [each.sliding_window_size for each in layers] == [63, 99, -1]
