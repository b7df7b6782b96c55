"""The prefix cache over host memory: what SGLang asks of one with ``--enable-hierarchical-cache``.

A match has two handles, the `Hit` on the device and the `Hit` of both tiers. SGLang locks the first
while it considers a request, has the second loaded when it admits it, and locks that. Copies are
made in the order in which the core decided on them, before the step that may write to the pages
they read (`adapter.host_copies`); so there is nothing to acknowledge.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.srt.mem_cache.base_prefix_cache import (
    InitLoadBackParams,
    MatchPrefixParams,
    MatchResult,
    TreeLock,
)
from sglang.srt.runtime_context import get_memory

from jenga_sglang.adapter.cache.namespace import Namespace, history
from jenga_sglang.adapter.cache.open_storage import open_storage
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.adapter.cache.storage_tier import StorageTier, storage_stats
from jenga_sglang.adapter.storage.workers import Traffic
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.books.tree import Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.tiered_manager import TieredManager
from jenga_sglang.core.tiers import WritePolicy

if TYPE_CHECKING:
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    from jenga_sglang.adapter.host_pool import HostPool
    from jenga_sglang.adapter.sglang_views import ReqView

logger = logging.getLogger(__name__)

NOTHING: Mapping[int, Any] = MappingProxyType({})
NO_TRANSFER = -1  # SGLang's number of a batch that waits for no load


class JengaTieredCache(JengaPrefixCache):
    """`JengaPrefixCache` of a `TieredManager` and its host memory."""

    manager: TieredManager

    # Copies in flight, by SGLang's names for them. Nobody waits for what is written to storage: it
    # is read where it lies, and what has gone by then is left out.
    ongoing_write_through = NOTHING
    ongoing_load_back = NOTHING
    ongoing_backup = NOTHING
    hicache_storage_pass_prefix_keys = False

    def __init__(self, params: CacheInitParams, manager: TieredManager, host: HostPool) -> None:
        super().__init__(params, manager, host.copies)
        self.token_to_kv_pool_host = host
        self.storage: StorageTier | None = None
        self._traffic = Traffic()
        host.pool.storage_stats = self.storage_stats
        # A hit that has been loaded and is about to be locked.
        self._loaded: TreeLock | None = None

    def reset(self) -> None:
        super().reset()
        self._loaded = None
        self.token_to_kv_pool_host.record_freed()
        if self.storage is not None:
            self.storage.reset()

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Changes nothing, as `JengaPrefixCache.match_prefix`."""
        namespace = history(params.key, params.req)
        device, whole = self.manager.match_tiers(namespace, self._keys_of(params.key))
        length = device.path.num_pages * self.page_size
        return MatchResult(
            device_prefix_len=length,
            last_device_node=device,
            last_host_node=whole,
            best_match_node=whole,
            host_hit_length=whole.path.num_pages * self.page_size - length,
            full_kv_hit_length=whole.matched_pages * self.page_size,
        )

    def lock(self, node: Any) -> TreeLock:
        """Of what `init_load_back` has loaded, the lock that it holds already."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None and loaded.node is node:
            self.admission.now.candidate = None
            return loaded
        self.unlock(loaded)
        return super().lock(node)

    def init_load_back(self, params: InitLoadBackParams) -> tuple[int, Any]:
        """Load what the host holds of the request's hit: all of it, or nothing where it does not
        fit beside what the pass has promised, or is computed in less time. Tokens that the hit has
        grown by, and its handle."""
        whole = params.best_match_node
        room = present(self.admission.now.load_room, "a load outside of a pass")
        beside = room.beside_load(whole.path.num_pages * self.page_size)
        running = self.manager.load(whole, beside, spared_tokens=params.host_hit_length)
        self.run_copies()
        if running is None:
            return 0, present(params.req, "a load for no request").last_node
        room.has_loaded()
        self._loaded = TreeLock(whole, running)
        self.manager.tier_counters.host_hit_tokens += params.host_hit_length
        return params.host_hit_length, whole

    def run_copies(self) -> None:
        copies = self.manager.tiers.take_copies()
        if not copies:
            self.token_to_kv_pool_host.poison_freed()
            return
        with self.measured.copying(self.token_to_kv_pool_host.bytes_of(copies)):
            self.token_to_kv_pool_host.run(copies)
        if self.storage is not None:
            # Its threads read and write host memory themselves.
            self.token_to_kv_pool_host.copies.wait()
            self.storage.write(copies)

    def note_published(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int) -> None:
        super().note_published(namespace, tokens, row, first)
        if self.storage is not None:
            self.storage.published(namespace, tokens, row, first)

    def check_hicache_events(self) -> None:
        """As a pass begins: what has been decided since the last one is copied, and what has come
        from storage is there."""
        self.measured.pass_begins()
        self.run_copies()
        if self.storage is not None:
            self.storage.poll()

    def flush_pending_backups(self) -> None:
        self.run_copies()

    def ready_to_load_host_cache(self) -> int:
        """Loads are done when a batch is made."""
        return NO_TRANSFER

    def protected_size(self) -> int:
        """With the names of pages that are being read from storage, which no request has."""
        aside = int(np.count_nonzero(self.manager.names_aside()))
        return super().protected_size() + aside * self.page_size

    full_protected_size = protected_size

    # -- storage ------------------------------------------------------------------------------

    @property
    def enable_storage(self) -> bool:
        return self.storage is not None

    @property
    def ongoing_prefetch(self) -> Sequence[Any]:
        return self.storage.in_flight if self.storage is not None else ()

    @property
    def storage_prefetch_retries(self) -> Any:
        return self.storage.retries if self.storage is not None else None

    def is_backuped(self, node: Any) -> bool:
        """Whether to ask storage for what follows ``node``: what it has need not be in the host."""
        return True

    def get_last_hash_value(self, node: Any) -> None:
        """None: the reader works out the digests of a whole prompt."""

    def prefetch_from_storage(
        self,
        request: CacheRequestHandle,
        last_host_node: Any,
        new_input_tokens: Sequence[int],
        last_hash: str | None = None,
        prefix_keys: Sequence[str] | None = None,
        *,
        matched_prefix_tokens: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """Look for more of a prompt than the hit of both tiers, ``last_host_node``."""
        if self.storage is not None:
            tokens = np.array([*matched_prefix_tokens, *new_input_tokens], np.int64)
            self.storage.prefetch(request, last_host_node, tokens)

    def check_prefetch_progress(self, request: CacheRequestHandle) -> bool:
        return self.storage is None or self.storage.is_ready(request)

    def awaits_storage(self, req: ReqView) -> bool:
        return self.storage is not None and self.storage.is_awaited(req.cache_request_handle)

    def pop_prefetch_loaded_span(self, handle: CacheRequestHandle) -> tuple[int, int | None]:
        return self.storage.pop_loaded(handle) if self.storage is not None else (0, None)

    def release_aborted_request(self, handle: CacheRequestHandle) -> None:
        if self.storage is not None:
            self.storage.release(handle)

    def attach_storage_backend(
        self,
        storage_backend: str,
        storage_backend_extra_config_json: str | None = None,
        served_model_name: str | None = None,
        hicache_storage_prefetch_policy: str | None = None,
        hicache_write_policy: str | None = None,
    ) -> tuple[bool, str]:
        """Keep pages in a backend from now on. Whether it worked, and what there is to say."""
        if self.storage is not None:
            return False, "A storage backend is attached already. Detach it first."
        self.token_to_kv_pool_host.copies.wait()
        try:
            policy = hicache_storage_prefetch_policy or get_memory().hicache_storage_prefetch_policy
            write_policy = WritePolicy(hicache_write_policy or self.manager.write_policy)
            self.storage = open_storage(
                self.token_to_kv_pool_host,
                storage_backend,
                extra_config=storage_backend_extra_config_json,
                model_name=served_model_name,
                policy=policy,
                agreement=self.ranks,
                traffic=self._traffic,
                fetched=self._note_fetched,
            )
        except ValueError as error:
            # What was asked for makes no sense here: who asked is told, and nothing has happened.
            logger.warning("Storage backend %s was not attached: %s", storage_backend, error)
            return False, f"{storage_backend}: {error}"
        except Exception as error:
            logger.exception("Attaching storage failed")
            return False, f"{type(error).__name__}: {error}"
        self.manager.write_policy = write_policy
        return True, f"Attached storage backend {storage_backend}."

    def detach_storage_backend(self) -> tuple[bool, str]:
        """Keep pages in no backend any more. Whether it worked, and what there is to say."""
        if self.storage is None:
            return True, "No storage backend is attached."
        storage, self.storage = self.storage, None
        if not storage.close():
            logger.warning("Storage: detached; a thread still waits for the backend to answer")
        return True, "Detached the storage backend."

    def _note_fetched(self, namespace: Namespace, tokens: Tokens, row: Ids) -> None:
        if self.kv_events is not None and len(row):
            self.kv_events.published(namespace, tokens, row)

    def weights_changed(self) -> None:
        """Leave storage: what it has is of other weights, and does not say so."""
        if self.storage is not None:
            _, why = self.detach_storage_backend()
            logger.warning(
                "The weights have changed, and storage has pages of the old ones. %s", why
            )

    def storage_stats(self) -> dict[str, Any]:
        return storage_stats(self._traffic, self.manager.geometry.groups, self.storage)

    def clear_storage_backend(self) -> bool:
        """Delete what the backend keeps, of this server and of others; whether it could."""
        return self.storage is not None and self.storage.clear()
