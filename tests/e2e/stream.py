"""A stream of requests that puts a prefix cache and a small pool to work."""

import random
from dataclasses import dataclass, field

# Byte tokens; below them are special ones.
TOKENS = range(4, 260)
DOCUMENTS_IN_USE = 6


@dataclass(frozen=True)
class Request:
    """One greedy request."""

    prompt: list[int]
    max_new_tokens: int
    namespace: str | None = None
    ignore_eos: bool = False
    # The answer ends with the first of these, whatever else ends it.
    stop_tokens: tuple[int, ...] = ()
    # For a model that sees: the request's images (`e2e.images`), and their tiles.
    images: tuple[int, ...] = ()
    tiles: int = 1
    # For one that reads them in the text: an image's seed and its tokens, by the first one's place.
    pictures: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Which of `models.tiny_sights` sees them; none for `external_models.seeing`.
    sight: str = ""
    # For one that listens: the seed of its sound (`e2e.sound`), 0 for none.
    sound: int = 0


@dataclass(frozen=True)
class StreamShape:
    """How long things are, in tokens. Prompts have from 1 to ``longest_prompt``."""

    num_requests: int
    longest_prompt: int
    longest_answer: int = 160
    page_size: int = 16


def make_stream(shape: StreamShape, seed: int) -> list[Request]:
    """Return requests over a growing forest of documents that branch off one another.

    The first and the last of every ten in a row ask about documents; in the middle come short
    prompts with long answers, more of which are admitted than fit once they have grown.
    """
    rng = random.Random(seed)
    documents = [_text(rng, shape.longest_prompt) for _ in range(3)]
    requests = []
    for number in range(shape.num_requests):
        grows = 0.4 < number % 100 / min(100, shape.num_requests) < 0.75
        prompt = _prompt(rng, rng.choice(documents), shape, longest=64 if grows else None)
        if rng.random() < 0.15:
            # Old documents go out of use, so that what is cached of them is worth least.
            branch = prompt + _text(rng, shape.longest_prompt - len(prompt))
            documents = [*documents, branch][-DOCUMENTS_IN_USE:]
        most = shape.longest_answer
        requests.append(
            Request(
                prompt,
                rng.randint(most // 2, most) if grows else rng.randint(1, most // 5),
                rng.choice(("a", "b")) if rng.random() < 0.1 else None,
                ignore_eos=grows,
            )
        )
    return requests


def _prompt(
    rng: random.Random, document: list[int], shape: StreamShape, longest: int | None
) -> list[int]:
    """A document cut somewhere, often just before, at or after a page boundary, and mostly
    something of its own behind the cut."""
    longest = longest or shape.longest_prompt
    cut = rng.randint(1, longest)
    if rng.random() < 0.4:
        cut = cut // shape.page_size * shape.page_size + rng.choice((-1, 0, 0, 1))
    if rng.random() < 0.1:
        cut = rng.randint(1, 4)
    own = 0 if rng.random() < 0.2 else rng.randint(1, 40)
    cut = max(1, min(cut, longest - own))
    return document[:cut] + _text(rng, own)


def _text(rng: random.Random, length: int) -> list[int]:
    return [rng.choice(TOKENS) for _ in range(length)]
