"""What the prefix tree compares, token by token.

A draft model reads, with what the target has made of a token, the token that follows: what it keeps
of a token is good for a history that goes on in the same way. So the key of a token is the pair.
"""

from __future__ import annotations

from collections.abc import Callable

from jenga_sglang.core.books.tree import Tokens

TOKEN_BITS = 32

# The keys of the first so many tokens of a text, or of those of which they are known.
Keys = Callable[[Tokens, int], Tokens]


def single(tokens: Tokens, count: int) -> Tokens:
    """Each token is its own key."""
    return tokens[:count]


def paired(tokens: Tokens, count: int) -> Tokens:
    """Each token with the next one, both below 2³²; the last one known has none."""
    tokens = tokens[: count + 1]
    return tokens[:-1] << TOKEN_BITS | tokens[1:]
