"""KV events for cache-aware routers, with the group and the tier that each of them is about.

The messages and hashes are SGLang's own (`--kv-events-config`), and so is the medium: the device's
memory or the host's. Two fields more say which layer group gained or lost a page: a router that
knows them can tell how long a prefix hit would be; one that does not sees a page as gone as soon as
one group has dropped it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from sglang.srt.mem_cache.utils import hash_str_to_int64

from jenga_sglang.adapter.cache.namespace import Namespace
from jenga_sglang.adapter.cache.page_digests import PageDigests
from jenga_sglang.core.books.corrupt import none
from jenga_sglang.core.books.journal import TreeChange
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager

# Of the tiers, from the top.
MEDIA = (StorageMedium.GPU, StorageMedium.CPU)
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

    A page's hash covers all tokens up to its end (`page_digests`), with the namespace of it.
    """

    def __init__(self, manager: Manager, lora_names: Any, *, dynamo_format: bool) -> None:
        self.manager = manager
        self._lora_names = lora_names
        self._dynamo_format = dynamo_format
        self._queue: list[Any] = []
        self._digests = PageDigests(manager, _salted)
        self.reset()

    def reset(self) -> None:
        """All pages have gone at once; also called when the manager has begun anew."""
        for memory in self.manager.memories:
            memory.journal.record_tree()
        self._digests.reset()
        # Of each tree page: what is published of its digest and of the one before it, its place in
        # its history, its tokens, and whose they are.
        pages = len(self.manager.memory.in_tree)
        self._hash, self._parent, self._depth = np.zeros((3, pages), np.int64)
        self._tokens = np.zeros((pages, self.manager.page_size), np.int64)
        self._namespace: dict[int, Namespace] = {}
        self._queue.append(AllBlocksCleared())

    def take(self) -> list[Any]:
        """Events since the last call."""
        for changes, medium in self._changes():
            self._emit(changes, medium)
        events, self._queue = self._queue, []
        return events

    def published(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int = 0) -> None:
        """``row``, virtual pages of ``tokens``, has just been put into the tree from page ``first``
        on."""
        fresh, left = row[first:], []
        for changes, medium in self._changes():
            # Not named before: a page that was removed may have been given to this history.
            is_new = [c.held and bool(np.isin(c.virtual, fresh).any()) for c in changes]
            index = is_new.index(True) if any(is_new) else len(changes)
            self._emit(changes[:index], medium)
            left.append((changes[index:], medium))
        self._name(namespace, tokens, row, first)
        for changes, medium in left:
            self._emit(changes, medium)

    def _changes(self) -> list[tuple[list[TreeChange], StorageMedium]]:
        journals = [memory.journal for memory in self.manager.memories]
        return [(j.take_tree_changes(), m) for j, m in zip(journals, MEDIA, strict=False)]

    # -- hashes -------------------------------------------------------------------------------

    def _name(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int) -> None:
        """Give the pages of ``row`` from ``first`` on their hashes, as SGLang computes them."""
        seed, size = self._seed(namespace), self.manager.page_size
        digests = self._digests.name(namespace, tokens, row, first)
        named = row[len(row) - len(digests) :]
        before = int(self._hash[row[len(row) - len(named) - 1]]) if len(named) < len(row) else 0
        for virtual, digest, stop in zip(
            named.tolist(), digests, range(len(row) - len(named) + 1, len(row) + 1), strict=True
        ):
            own = namespaced_block_hash(hash_str_to_int64(digest), namespace_seed=seed)
            if virtual:
                self._hash[virtual], self._parent[virtual] = own, before
                self._depth[virtual] = stop
                self._tokens[virtual] = tokens[(stop - 1) * size : stop * size]
                self._namespace[virtual] = namespace
            before = own if virtual else 0

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

    def _emit(self, changes: Sequence[TreeChange], medium: StorageMedium) -> None:
        for change in changes:
            if change.held:
                unnamed = [v for v in change.virtual.tolist() if v not in self._namespace]
                none("pages that came into the tree without their tokens", unnamed)
                self._stored(change, medium)
            else:
                self._queue.append(
                    GroupBlockRemoved(
                        block_hashes=self._hash[change.virtual].tolist(),
                        medium=medium,
                        **self._group(change.group),
                    )
                )

    def _stored(self, change: TreeChange, medium: StorageMedium) -> None:
        for run in self._runs(change.virtual):
            first = int(run[0])
            namespace = self._namespace[first]
            self._queue.append(
                GroupBlockStored(
                    block_hashes=self._hash[run].tolist(),
                    parent_block_hash=int(self._parent[first]) or None,
                    token_ids=self._tokens[run].ravel().tolist(),
                    block_size=self.manager.page_size,
                    lora_id=None,
                    medium=medium,
                    cache_salt=namespace.cache_salt,
                    lora_name=self._lora_name(namespace),
                    **self._group(change.group),
                )
            )

    def _runs(self, virtual: Ids) -> list[Ids]:
        """``virtual`` pages, divided where one does not follow the page before it."""
        ordered = virtual[np.argsort(self._depth[virtual], kind="stable")]
        breaks = np.flatnonzero(self._parent[ordered[1:]] != self._hash[ordered[:-1]]) + 1
        return np.split(ordered, breaks)

    def _group(self, group: int) -> dict[str, Any]:
        return {"group_idx": group, "group": str(self.manager.dependencies[group])}


def _salted(namespace: Namespace) -> str | None:
    """What a history's chain of hashes begins with."""
    if namespace.cache_salt is None:
        return None
    salt = namespace.cache_salt.encode()
    return hashlib.sha256(b"sglang-cache-salt-v1\0" + salt).hexdigest()
