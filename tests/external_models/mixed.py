"""`net.Net` as a model of SGLang: its attention layers are `RadixAttention`."""

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from torch import nn

from external_models.net import HEADS, HIDDEN, Layer, Net


class MixedForCausalLM(nn.Module):
    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        self.net = Net([Layer(**layer) for layer in config.mixed_layers])
        self.attention = nn.ModuleList(
            attention(number, kind, self.net.kinds) for number, kind in enumerate(self.net.kinds)
        )
        self.lm_head = ParallelLMHead(config.vocab_size, HIDDEN)
        self.logits_processor = LogitsProcessor(config)

    def get_input_embeddings(self) -> nn.Module:
        return self.net.embed

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,
        **kwargs: Any,
    ) -> Any:
        with torch.no_grad():
            hidden = self.hidden(input_ids, positions, forward_batch)
            return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def hidden(
        self, tokens: torch.Tensor, positions: torch.Tensor, forward_batch: Any
    ) -> torch.Tensor:
        """Tokens, or rows in their place, through all layers."""

        def attend(
            number: int, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
        ) -> torch.Tensor:
            kind = self.net.kinds[number]
            more = {"sinks": self.net.blocks[number].sinks} if kind.sinks else {}
            shared = kind.shares is not None
            return self.attention[number](q, k, v, forward_batch, not shared, **more)

        return self.net(tokens, positions, attend)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        loaded = dict(weights)
        self.net.load_state_dict(loaded)
        self.lm_head.weight.data[: len(loaded["head.weight"])] = loaded["head.weight"]


def attention(number: int, kind: Layer, kinds: list[Layer]) -> RadixAttention:
    source = number if kind.shares is None else kind.shares
    return RadixAttention(
        HEADS,
        kind.dim_k,
        kind.dim_k**-0.5,
        num_kv_heads=kinds[source].kv_heads,
        layer_id=source,
        v_head_dim=kind.dim_v,
        # As SGLang counts: without the query itself.
        sliding_window_size=kind.window - 1 if kind.window else -1,
        use_irope=bool(kind.chunk),
    )


EntryClass = MixedForCausalLM
