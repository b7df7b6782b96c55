"""The prefix cache over host memory: what SGLang asks of one with ``--enable-hierarchical-cache``.

A match has two handles, the `Hit` on the device and the `Hit` of both tiers. SGLang locks the first
while it considers a request, has the second loaded when it admits it, and locks that. Copies are
made in the order in which the core decided on them, before the step that may write to the pages
they read; nothing is in flight between two calls, so there is nothing to acknowledge.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.base_prefix_cache import (
    InitLoadBackParams,
    MatchPrefixParams,
    MatchResult,
    TreeLock,
)

from jenga_sglang.adapter.cache.namespace import history
from jenga_sglang.adapter.cache.prefix_cache import JengaPrefixCache
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.tiered_manager import TieredManager

if TYPE_CHECKING:
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    from jenga_sglang.adapter.host_pool import HostPool

NOTHING: Mapping[int, Any] = MappingProxyType({})
NO_TRANSFER = -1  # SGLang's number of a batch that waits for no load


class JengaTieredCache(JengaPrefixCache):
    """`JengaPrefixCache` of a `TieredManager` and its host memory."""

    manager: TieredManager

    # Copies in flight, by SGLang's names for them.
    ongoing_write_through = NOTHING
    ongoing_load_back = NOTHING
    enable_storage = False

    def __init__(self, params: CacheInitParams, manager: TieredManager, host: HostPool) -> None:
        super().__init__(params, manager)
        self.token_to_kv_pool_host = host
        # A hit that has been loaded and is about to be locked.
        self._loaded: TreeLock | None = None

    def reset(self) -> None:
        super().reset()
        self._loaded = None
        self.token_to_kv_pool_host.record_freed()

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
        fit beside what the pass has promised. Tokens that the hit has grown by, and its handle."""
        whole = params.best_match_node
        room = present(self.admission.now.load_room, "a load outside of a pass")
        beside = room.beside_load(whole.path.num_pages * self.page_size)
        running = self.manager.load(whole, beside)
        self.run_copies()
        if running is None:
            return 0, present(params.req, "a load for no request").last_node
        room.has_loaded()
        self._loaded = TreeLock(whole, running)
        self.manager.tier_counters.host_hit_tokens += params.host_hit_length
        return params.host_hit_length, whole

    def run_copies(self) -> None:
        self.token_to_kv_pool_host.run(self.manager.tiers.take_copies())

    def check_hicache_events(self) -> None:
        """As a pass begins: what has been decided since the last one is copied."""
        self.run_copies()

    def flush_pending_backups(self) -> None:
        self.run_copies()

    def ready_to_load_host_cache(self) -> int:
        """Loads are done when a batch is made."""
        return NO_TRANSFER

    def clear_storage_backend(self) -> None:
        """There is no storage below the host."""
