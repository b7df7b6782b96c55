"""Whose prefixes a request may share."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

from jenga_sglang.adapter.encoder import page_tokens
from jenga_sglang.core.books.tree import Encoded

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import RadixKey

    from jenga_sglang.adapter.sglang_views import ReqView


class Namespace(NamedTuple):
    """Requests share prefixes when all of this is equal.

    ``extra_key`` is SGLang's: the caller's key with the adapter's id behind it, in one string.
    That string alone would let a caller name an adapter's prefixes, so ``adapter`` says whether
    there is one: among requests of one adapter the string tells the callers' keys apart.
    """

    adapter: str | None
    extra_key: str | None
    cache_salt: str | None


def history(owner: RadixKey | ReqView, req: ReqView | None) -> Hashable:
    """The namespace in the tree of what ``owner`` names, a request's or nobody's."""
    encoder_tokens = 0 if req is None else page_tokens(req)
    shared = namespace(owner, req)
    return Encoded(shared, encoder_tokens) if encoder_tokens else shared


def namespace(owner: RadixKey | ReqView, req: ReqView | None) -> Namespace:
    adapter = None if req is None else req.lora_id
    return Namespace(adapter, owner.extra_key, owner.cache_salt or None)
