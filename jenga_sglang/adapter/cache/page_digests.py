"""What a page of tokens is known by outside of this process: a digest of all tokens up to its end.

The chain is SGLang's (`mem_cache.utils.get_hash_str`): SHA-256 of a page's tokens behind the digest
of the page before, or behind a seed that tells namespaces apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sglang.srt.mem_cache.utils import get_hash_str

from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager

DIGEST_BYTES = 32
Seed = Callable[[Namespace], str | None]


class PageDigests:
    """The digest of every tree page, by its virtual page: kept from when the page is published to
    when its virtual page is given to another history."""

    def __init__(self, manager: Manager, seed: Seed) -> None:
        self.manager = manager
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget all; also called when the manager has begun anew."""
        self._digest = np.zeros((len(self.manager.memory.in_tree), DIGEST_BYTES), np.uint8)

    def of(self, virtual: int) -> str:
        """The digest of one tree page, in hexadecimal."""
        return self._digest[virtual].tobytes().hex()

    def name(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int) -> list[str]:
        """Give the pages of ``row``, virtual pages of ``tokens``, their digests from page ``first``
        on; those of the last pages of it, as many as had to be worked out."""
        while first and row[first - 1] == 0:
            first -= 1  # nobody remembers the digest of a hollow page
        prior = self.of(row[first - 1]) if first else self._seed(namespace)
        size = self.manager.page_size
        digests = chain(tokens[first * size : len(row) * size], prior, size)
        self.note(row[first:], digests)
        return digests

    def note(self, row: Ids, digests: Sequence[str]) -> None:
        """The pages of ``row`` have these digests; hollow ones are passed over."""
        digests = digests[: len(row)]
        known = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, DIGEST_BYTES)
        held = np.flatnonzero(row[: len(known)])
        self._digest[row[held]] = known[held]


def chain(tokens: Tokens, prior: str | None, page_size: int) -> list[str]:
    """The digests of whole pages of ``tokens``, which follow what ``prior`` is the digest of."""
    digests: Any = get_hash_str(tokens.tolist(), prior, page_size=page_size)
    return list(digests)
