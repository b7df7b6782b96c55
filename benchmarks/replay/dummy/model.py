"""The model class that SGLang builds: `RadixAttention` modules and nothing else.

It is never run. Memory backends read their layer groups off these modules.
"""

from collections.abc import Iterable
from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn


class ReplayForCausalLM(nn.Module):
    """One `RadixAttention` a layer with rows, shaped by `config.replay_layers`."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            _attention(layer_id, layer)
            for layer_id, layer in enumerate(config.replay_layers)
            if layer is not None
        )

    def get_attention_sliding_window_size(self) -> int | None:
        """Return the window as SGLang counts it: the tokens before the current one. For chunks
        SGLang takes their whole size, as for Llama-4."""
        window = self.config.sliding_window
        return self.config.attention_chunk_size if window is None else window - 1

    def load_weights(self, weights: Iterable[Any]) -> None:
        """Take no weights."""
        for _ in weights:
            pass


def _attention(layer_id: int, layer: dict[str, Any]) -> nn.Module:
    """Build one layer. SGLang's `sliding_window_size` is the window minus one, -1 for none."""
    return RadixAttention(
        num_heads=layer["kv_heads"],
        head_dim=layer["head_dim"],
        scaling=1.0,
        num_kv_heads=layer["kv_heads"],
        layer_id=layer_id,
        sliding_window_size=layer["window"] - 1 if layer["window"] and not layer["chunked"] else -1,
        use_irope=layer["chunked"],
    )


EntryClass = [ReplayForCausalLM]
