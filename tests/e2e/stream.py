"""A stream of requests that puts a prefix cache and a small pool to work."""

import random
from dataclasses import dataclass

# Byte tokens; below them are special ones.
TOKENS = range(4, 260)


@dataclass(frozen=True)
class Request:
    """One greedy request. ``ignore_eos`` makes SGLang reserve all that it may generate."""

    prompt: list[int]
    max_new_tokens: int
    namespace: str | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class StreamShape:
    """How long things are, in tokens. Prompts have from 1 to ``longest_prompt``."""

    num_requests: int
    longest_prompt: int
    most_new_tokens: int = 48
    page_size: int = 16


def make_stream(shape: StreamShape, seed: int) -> list[Request]:
    """Return requests over a growing forest of documents that branch off one another.

    A prompt is a document cut somewhere, often just before, at or after a page boundary, and
    mostly something of its own behind the cut. Some prompts become documents themselves; old
    documents go out of use, so that what is cached of them is worth least.
    """
    rng = random.Random(seed)
    documents = [_text(rng, shape.longest_prompt) for _ in range(3)]
    requests = []
    for _ in range(shape.num_requests):
        prompt = _prompt(rng, rng.choice(documents), shape)
        if rng.random() < 0.15:
            documents.append(prompt + _text(rng, shape.longest_prompt - len(prompt)))
            documents = documents[-6:]
        namespace = rng.choice(("a", "b")) if rng.random() < 0.1 else None
        requests.append(Request(prompt, _new_tokens(rng, shape), namespace, rng.random() < 0.1))
    return requests


def _prompt(rng: random.Random, document: list[int], shape: StreamShape) -> list[int]:
    cut = rng.randint(1, shape.longest_prompt)
    if rng.random() < 0.4:
        cut = cut // shape.page_size * shape.page_size + rng.choice((-1, 0, 0, 1))
    if rng.random() < 0.1:
        cut = rng.randint(1, 4)
    own = 0 if rng.random() < 0.2 else rng.randint(1, 40)
    cut = max(1, min(cut, shape.longest_prompt - own))
    return document[:cut] + _text(rng, own)


def _new_tokens(rng: random.Random, shape: StreamShape) -> int:
    """Mostly a few, sometimes a lot: that is what makes an admission forecast wrong."""
    most = shape.most_new_tokens
    return rng.randint(most // 2, most) if rng.random() < 0.4 else rng.randint(1, most // 3)


def _text(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(TOKENS) for _ in range(length)]
