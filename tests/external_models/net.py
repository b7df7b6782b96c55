"""A small transformer whose every attention layer can be of another kind, in plain torch.

Whoever runs it says how a layer attends: `DenseAttention` over a whole sequence at once, or a
server over its pages.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import silu
from transformers import LlamaConfig

from examples.demo_model.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, make_byte_tokenizer

HIDDEN, HEADS = 64, 4
ARCHITECTURE = "MixedForCausalLM"
Attend = Callable[[int, torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One attention layer. ``window`` and ``chunk`` in tokens, 0 for none; ``shares`` is the layer
    whose keys and values it reads instead of its own; ``sinks`` adds a logit without a value."""

    window: int = 0
    chunk: int = 0
    kv_heads: int = 2
    dim_k: int = 16
    dim_v: int = 16
    shares: int | None = None
    sinks: bool = False


class Net(nn.Module):
    """Embedding, layers, logits. Norms without weights; positions only matter to who attends."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.kinds = layers
        self.embed = nn.Embedding(VOCAB_SIZE, HIDDEN)
        self.blocks = nn.ModuleList(Block(kind) for kind in layers)
        self.head = nn.Linear(HIDDEN, VOCAB_SIZE, bias=False)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> Any:
        """(n,) tokens at (n,) positions, or (n, hidden) in place of them → (n, hidden), before the
        head."""
        x = tokens if tokens.is_floating_point() else self.embed(tokens)
        for number, block in enumerate(self.blocks):
            q, k, v = block.project(norm(x), positions)
            x = x + block.o(attend(number, q, k, v))
            x = x + block.down(silu(block.up(norm(x))))
        return norm(x)


class Block(nn.Module):
    def __init__(self, kind: Layer) -> None:
        super().__init__()
        self.kind = kind
        self.q = nn.Linear(HIDDEN, HEADS * kind.dim_k, bias=False)
        if kind.shares is None:
            self.k = nn.Linear(HIDDEN, kind.kv_heads * kind.dim_k, bias=False)
            self.v = nn.Linear(HIDDEN, kind.kv_heads * kind.dim_v, bias=False)
        self.o = nn.Linear(HEADS * kind.dim_v, HIDDEN, bias=False)
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        if kind.sinks:
            self.sinks = nn.Parameter(torch.zeros(HEADS))

    def project(
        self, x: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        q = rotate(self.q(x).unflatten(-1, (HEADS, -1)), positions)
        if self.kind.shares is not None:
            return q.flatten(1), None, None
        k = rotate(self.k(x).unflatten(-1, (self.kind.kv_heads, -1)), positions)
        return q.flatten(1), k.flatten(1), self.v(x)


def norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions on (n, heads, dim)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class DenseAttention:
    """Attention over one whole sequence, kind by kind, from the definition."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self, number: int, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
    ) -> torch.Tensor:
        kind = self.net.kinds[number]
        if kind.shares is not None:
            keys, values = self.kept[kind.shares]
        else:
            assert k is not None and v is not None
            repeats = HEADS // kind.kv_heads
            keys = k.unflatten(-1, (kind.kv_heads, -1)).repeat_interleave(repeats, 1)
            values = v.unflatten(-1, (kind.kv_heads, -1)).repeat_interleave(repeats, 1)
            self.kept[number] = keys, values
        queries = q.unflatten(-1, (HEADS, -1))
        logits = torch.einsum("qhd,khd->hqk", queries, keys) * kind.dim_k**-0.5
        query, key = torch.arange(len(q))[:, None], torch.arange(len(q))[None]
        visible = key <= query
        if kind.window:
            visible &= query - key < kind.window
        if kind.chunk:
            visible &= query // kind.chunk == key // kind.chunk
        logits = logits.masked_fill(~visible, float("-inf"))
        if kind.sinks:
            sink = self.net.blocks[number].sinks[:, None, None].expand(-1, len(q), 1)
            shares = torch.cat((logits, sink), -1).softmax(-1)[..., :-1]
        else:
            shares = logits.softmax(-1)
        return torch.einsum("hqk,khd->qhd", shares, values).flatten(1)


def make_mixed_model(
    path: Path, layers: list[Layer], seed: int = 0, architecture: str = ARCHITECTURE
) -> Net:
    """Write a random model for SGLang into ``path``, and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(layers)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    path.mkdir(parents=True)
    chunks = {layer.chunk for layer in layers if layer.chunk}
    assert len(chunks) <= 1, "SGLang has one chunk length a model"
    config = LlamaConfig(
        architectures=[architecture],
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=len(layers),
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        attention_chunk_size=max(chunks, default=None),
        mixed_layers=[asdict(layer) for layer in layers],
    )
    config.save_pretrained(path)
    make_byte_tokenizer(path)
    save_file(net.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    return net.eval()


@torch.inference_mode()
def answer(
    net: Net, prompt: list[int], num_tokens: int, pictures: dict[int, torch.Tensor] | None = None
) -> list[int]:
    """The likeliest next tokens, the whole sequence computed anew for each; ``pictures`` replace
    the embeddings of tokens from a place on."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        embedded = net.embed(torch.tensor(tokens))
        for place, rows in (pictures or {}).items():
            embedded[place : place + len(rows)] = rows
        hidden = net(embedded, torch.arange(len(tokens)), DenseAttention(net))
        tokens.append(int(net.head(hidden[-1]).argmax()))
    return tokens[len(prompt) :]
