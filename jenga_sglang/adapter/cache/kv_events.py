"""KV events for cache-aware routers, with the group that each of them is about.

The messages and hashes are SGLang's own (`--kv-events-config`). Two fields more say which layer
group gained or lost a page: a router that knows them can tell how long a prefix hit would be; one
that does not sees a page as gone as soon as one group has dropped it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sglang.srt.disaggregation.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    StorageMedium,
    kv_event_namespace_seed,
    namespaced_block_hash,
)
from sglang.srt.mem_cache.utils import get_hash_str, hash_str_to_int64

from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.core.books.corrupt import none
from jenga_sglang.core.books.journal import TreeChange
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager

DIGEST_BYTES = 32
# Behind a caller's key that ends like an adapter's namespace, in hashes only.
NOT_AN_ADAPTER = "\0no adapter"


class GroupBlockStored(BlockStored, tag="BlockStored"):  # type: ignore[call-arg]
    """``group_idx`` counts the layer groups of `/jenga/stats`; ``group`` is its dependency."""

    group_idx: int | None = None
    group: str | None = None


class GroupBlockRemoved(BlockRemoved, tag="BlockRemoved"):  # type: ignore[call-arg]
    """As in `GroupBlockStored`."""

    group_idx: int | None = None
    group: str | None = None


class KvEvents:
    """Turns what the prefix tree gains and loses into events, in order.

    A page's hash covers all tokens up to its end, so it is kept from when the page is published to
    when its virtual page is given to another history.
    """

    def __init__(self, manager: Manager, lora_names: Any, *, dynamo_format: bool) -> None:
        self.manager = manager
        self._lora_names = lora_names
        self._dynamo_format = dynamo_format
        self._queue: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """All pages have gone at once; also called when the manager has begun anew."""
        memory = self.manager.memory
        memory.journal.record_tree()
        # Of the history that each tree page ends: SHA-256, and what is published of it.
        self._digest = np.zeros((len(memory.in_tree), DIGEST_BYTES), np.uint8)
        self._hash = np.zeros(len(memory.in_tree), np.int64)
        self._queue.append(AllBlocksCleared())

    def take(self) -> list[Any]:
        """Events since the last call."""
        self._removals(self.manager.memory.journal.take_tree_changes())
        events, self._queue = self._queue, []
        return events

    def published(self, namespace: Namespace, tokens: Tokens, row: Ids) -> None:
        """``row``, virtual pages of ``tokens``, has just been put into the tree."""
        changes = self.manager.memory.journal.take_tree_changes()
        stored = [change for change in changes if change.held]
        named = False
        for change in changes:
            if not change.held:
                self._removals([change])
                continue
            if not named:
                # Not before: a page that was removed may have been given to this history.
                first = min(int(self.manager.memory.depth[c.virtual].min()) for c in stored)
                self._name(namespace, tokens, row, first)
                named = True
            self._stored(change, namespace, tokens, row)

    # -- hashes -------------------------------------------------------------------------------

    def _name(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int) -> None:
        """Give the pages of ``row`` from ``first`` on their hashes, as SGLang computes them."""
        size = self.manager.page_size
        while first and row[first - 1] == 0:
            first -= 1  # nobody remembers the hash of a hollow page
        prior = self._digest[row[first - 1]].tobytes().hex() if first else _salted(namespace)
        fresh = tokens[first * size : len(row) * size].tolist()
        digests: Any = get_hash_str(fresh, prior, page_size=size)
        seed = self._seed(namespace)
        for virtual, digest in zip(row[first:].tolist(), digests, strict=True):
            if virtual:
                self._digest[virtual] = np.frombuffer(bytes.fromhex(digest), np.uint8)
                self._hash[virtual] = namespaced_block_hash(
                    hash_str_to_int64(digest), namespace_seed=seed
                )

    def _seed(self, namespace: Namespace) -> bytes | None:
        """As SGLang's, but that a caller's key is never an adapter's: equal hashes would have a
        router lose the pages of one when the other's go."""
        extra_key, cache_salt = namespace.extra_key, namespace.cache_salt
        name = self._lora_name(namespace)
        if self._dynamo_format:
            if name is None and self._lora_names.resolve(extra_key) is not None:
                extra_key = f"{extra_key}{NOT_AN_ADAPTER}"
            return kv_event_namespace_seed(extra_key=extra_key, cache_salt=cache_salt)
        named = extra_key if name is not None else None
        return kv_event_namespace_seed(extra_key=named, cache_salt=None)

    def _lora_name(self, namespace: Namespace) -> str | None:
        if namespace.adapter is None:
            return None
        # SGLang 0.5.22 names adapters in Dynamo's format only.
        name_of = getattr(self._lora_names, "resolve" if self._dynamo_format else "get", None)
        return name_of(namespace.extra_key) if name_of else None

    # -- events -------------------------------------------------------------------------------

    def _stored(self, change: TreeChange, namespace: Namespace, tokens: Tokens, row: Ids) -> None:
        size = self.manager.page_size
        lora_name = self._lora_name(namespace)
        for start, stop in _runs(self.manager.memory.depth[change.virtual]):
            before = int(row[start - 1]) if start else 0
            self._queue.append(
                GroupBlockStored(
                    block_hashes=self._hash[row[start:stop]].tolist(),
                    parent_block_hash=int(self._hash[before]) if before else None,
                    token_ids=tokens[start * size : stop * size].tolist(),
                    block_size=size,
                    lora_id=None,
                    medium=StorageMedium.GPU,
                    cache_salt=namespace.cache_salt,
                    lora_name=lora_name,
                    **self._group(change.group),
                )
            )

    def _removals(self, changes: Sequence[TreeChange]) -> None:
        for change in changes:
            if change.held:
                none("pages that came into the tree without their tokens", change.virtual)
            self._queue.append(
                GroupBlockRemoved(
                    block_hashes=self._hash[change.virtual].tolist(),
                    medium=StorageMedium.GPU,
                    **self._group(change.group),
                )
            )

    def _group(self, group: int) -> dict[str, Any]:
        return {"group_idx": group, "group": str(self.manager.dependencies[group])}


def _salted(namespace: Namespace) -> str | None:
    """What a history's chain of hashes begins with."""
    if namespace.cache_salt is None:
        return None
    salt = namespace.cache_salt.encode()
    return hashlib.sha256(b"sglang-cache-salt-v1\0" + salt).hexdigest()


def _runs(depths: Ids) -> Iterator[tuple[int, int]]:
    """Ranges of pages that follow each other."""
    ordered = np.sort(depths)
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    for run in np.split(ordered, breaks):
        yield int(run[0]), int(run[-1]) + 1
