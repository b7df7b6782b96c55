"""The recall task: a document of key-value pairs, then a key whose values are to be named.

A document is ``BOS`` and pairs ``key first second third`` in random order with filler between
them; a question is ``QUERY key`` and its answer ``first second third``. A key stands once in a
document, and so does each value, so one look-up far back answers each token.
"""

import random
from dataclasses import dataclass

from examples.demo_model.tokenizer import BOS_ID, SPECIAL_TOKENS

QUERY = len(SPECIAL_TOKENS)
FILLER = range(QUERY + 1, 20)
NUM_KEYS = 60
KEYS = range(20, 20 + NUM_KEYS)
# Three alphabets of their own, so that a value's token says which of the three it is.
VALUES = tuple(range(80 + NUM_KEYS * i, 80 + NUM_KEYS * (i + 1)) for i in range(3))
PAIR_TOKENS = 1 + len(VALUES)
QUESTION_TOKENS = 1 + PAIR_TOKENS


@dataclass(frozen=True)
class Document:
    """Its tokens, the answer to every key, and where each key stands."""

    tokens: list[int]
    answers: dict[int, list[int]]
    place: dict[int, int]

    def question(self, key: int) -> list[int]:
        """The document followed by a question for ``key``, without its answer."""
        return [*self.tokens, QUERY, key]

    def keys_before(self, position: int) -> list[int]:
        """The keys whose pairs end before ``position``, in order of the alphabet."""
        return [key for key in KEYS if self.place.get(key, position) + PAIR_TOKENS <= position]


def make_document(rng: random.Random, num_pairs: int, length: int) -> Document:
    """Return a document of ``length`` tokens, filled up with filler at random places."""
    num_filler = length - 1 - num_pairs * PAIR_TOKENS
    if num_filler < 0:
        raise ValueError(f"{num_pairs} pairs do not fit into {length} tokens")
    keys = rng.sample(KEYS, num_pairs)
    columns = [rng.sample(values, num_pairs) for values in VALUES]
    answers = dict(zip(keys, map(list, zip(*columns, strict=True)), strict=True))
    slots: list[int | None] = [*keys, *[None] * num_filler]
    rng.shuffle(slots)
    tokens, place = [BOS_ID], {}
    for key in slots:
        if key is None:
            tokens.append(rng.choice(FILLER))
        else:
            place[key] = len(tokens)
            tokens += [key, *answers[key]]
    return Document(tokens, answers, place)
