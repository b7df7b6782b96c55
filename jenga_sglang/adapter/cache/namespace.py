"""Whose prefixes a request may share."""

from __future__ import annotations

from typing import NamedTuple


class Namespace(NamedTuple):
    """Requests share prefixes when all of this is equal.

    ``extra_key`` is SGLang's: the caller's key with the adapter's id behind it, in one string.
    That string alone would let a caller name an adapter's prefixes, so ``adapter`` says whether
    there is one: among requests of one adapter the string tells the callers' keys apart.
    """

    adapter: str | None
    extra_key: str | None
    cache_salt: str | None
