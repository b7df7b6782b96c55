"""SGLang's prefix cache interface over the core's `Manager`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.mem_cache.base_prefix_cache import (
    BasePrefixCache,
    DecLockRefParams,
    DecLockRefResult,
    EvictParams,
    EvictResult,
    IncLockRefResult,
    MatchPrefixParams,
    MatchResult,
    TreeLock,
)

from jenga_sglang.adapter.cache.admission_pass import Admission
from jenga_sglang.adapter.cache.keys import Keys, paired, single
from jenga_sglang.adapter.cache.kv_events import KvEvents
from jenga_sglang.adapter.cache.measured import Measured
from jenga_sglang.adapter.cache.namespace import Namespace, history, namespace
from jenga_sglang.adapter.observe.metrics import JengaMetrics
from jenga_sglang.adapter.staged import to_device
from jenga_sglang.adapter.storage.agreement import Agreement
from jenga_sglang.adapter.streams import HostWork
from jenga_sglang.core.books.tree import Node, Tokens
from jenga_sglang.core.ids import Ids
from jenga_sglang.core.manager import Manager
from jenga_sglang.core.passing import Wanted
from jenga_sglang.core.ranges import Range
from jenga_sglang.core.running import Hit, Running
from jenga_sglang.core.stats import describe_room

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    from jenga_sglang.adapter.sglang_views import ReqView

logger = logging.getLogger(__name__)


@dataclass(eq=False)  # a key in dictionaries, as nodes are
class _Forest:
    """Stands in for the single root that SGLang's scheduling policies walk from."""

    children: dict[int, Node] = field(default_factory=dict)


class JengaPrefixCache(BasePrefixCache):
    """Node handles are the core's `Hit`s; a lock's receipt is the core's `Running`.

    ``disable`` stays False even under ``--disable-radix-cache``: it switches SGLang to an
    admission path of its own that counts in tokens of one pool.
    """

    def __init__(self, params: CacheInitParams, manager: Manager, clock: HostWork) -> None:
        self.disable = False
        self.manager = manager
        self.req_to_token_pool = params.req_to_token_pool
        self.token_to_kv_pool_allocator = params.token_to_kv_pool_allocator
        self.page_size = params.page_size
        self.device = torch.device(self.token_to_kv_pool_allocator.device)
        self.sliding_window_size = None
        rows = self.req_to_token_pool.req_to_token.shape[0]
        pool = self._pool = self.token_to_kv_pool_allocator.get_kvcache()
        # The request of every row in use, shared with the attention backend, and each row's last
        # virtual page for the decode step.
        self.running_of_row: dict[int, Running] = pool.running_of_row
        self.keys: Keys = paired if pool.draft_layers else single
        self.last_page = np.zeros(rows, np.int64)
        self.admission = Admission(manager, self.keys)
        self.ranks = Agreement(params.attn_tp_cache_group or params.tp_cache_group)
        self.measured = Measured(manager.prices, self.ranks, clock, stages=params.pp_size)
        # Requests that have two locks.
        self._locked_twice: set[int] = set()
        self._evicted_pages = 0
        if params.enable_kv_cache_events:
            self.kv_events = KvEvents(
                manager, params.kv_event_lora_names, dynamo_format=params.dynamo_kv_event_format
            )
        # Known when the scheduler is: `adapter.metrics.begin`.
        self.metrics: JengaMetrics | None = None
        if params.enable_metrics:
            self.init_metrics_collector()

    def reset(self) -> None:
        self.manager.reset()
        self.admission.reset()
        self._locked_twice.clear()
        self.running_of_row.clear()
        if self.kv_events is not None:
            self.kv_events.reset()
        self._evicted_pages = 0

    # -- matching -----------------------------------------------------------------------------

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Changes nothing: scheduling policies match the whole queue and then walk the tree, and
        forget whom they do not find there."""
        hit = self.manager.match(history(params.key, params.req), self._keys_of(params.key))
        if whole := self._whole_images(params.req):
            hit = replace(hit, whole=whole)
        return MatchResult(
            device_prefix_len=hit.path.num_pages * self.page_size,
            last_device_node=hit,
            last_host_node=hit,
            best_match_node=hit,
            full_kv_hit_length=hit.matched_pages * self.page_size,
        )

    def _whole_images(self, req: Req | None) -> tuple[Range, ...]:
        """Where ``req`` has images that one step must compute to their ends."""
        images = self._pool.whole_images
        return images.of_prompt(req.multimodal_inputs) if images and req is not None else ()

    def _keys_of(self, key: RadixKey) -> Tokens:
        # Not to be kept: a live view forbids the request to grow its array.
        tokens = np.frombuffer(key.token_ids, np.int64)
        return self.keys(tokens, len(tokens) if key.limit is None else key.limit)

    def touch_prefix(self, key: RadixKey) -> None:
        """Nothing to do: `Admission.look_ahead` knows the order of the queue as well."""

    def root_node_handle(self, extra_key: str | None = None) -> Hit:
        return self.manager.miss(Namespace(None, extra_key, None))

    @property
    def root_node(self) -> _Forest:
        return _Forest(dict(enumerate(self.manager.tree.roots())))

    def resolve_node_handle(self, node_handle: Hit) -> Node:
        return node_handle.path.node

    def is_root(self, node: Hit) -> bool:
        return node.path.num_pages == 0

    # -- locks --------------------------------------------------------------------------------

    def lock(self, node: Hit) -> TreeLock:
        """Pin what a request that continues from ``node`` needs. SGLang locks what it considers,
        and once more when it admits that: the second lock is the same request's."""
        passing = self.admission.now
        running, passing.candidate = passing.candidate, None
        if running is not None and running.hit is node:
            self._locked_twice.add(running.number)
            return TreeLock(node, running)
        passing.candidate = running = self.manager.lock(node)
        return TreeLock(node, running)

    def unlock(self, lock: TreeLock | None) -> None:
        """Drop the pages with the last lock. This frees what the request alone held: see
        `free_kv_row`."""
        if lock is None:
            return
        running: Running = lock.receipt
        if running is self.admission.now.candidate:
            self.admission.now.candidate = None
        if running.number in self._locked_twice:
            self._locked_twice.remove(running.number)
        else:
            self.manager.release(running)

    def inc_lock_ref(self, node: Any) -> IncLockRefResult:
        raise NotImplementedError("a Jenga lock is an object: use lock() and unlock()")

    def dec_lock_ref(self, node: Any, params: DecLockRefParams | None = None) -> DecLockRefResult:
        raise NotImplementedError("a Jenga lock is an object: use lock() and unlock()")

    def bind_row(self, req: Req) -> Running:
        """What ``req`` holds, whose req_to_token row has just been assigned."""
        if req.lock is None:
            miss = self.manager.miss(history(req, req))
            req.lock = TreeLock(miss, self.manager.lock(miss))
        running: Running = req.lock.receipt
        running.serves(req.priority or 0)
        self.running_of_row[req.kv.req_pool_idx] = running
        return running

    def free_kv_row(self, kv: Any, ranges: list[tuple[int, int]]) -> None:
        """Nothing to do: the row's private pages are pinned by its lock, and freed with it."""

    def on_release(self, req: Req, *, checkpointed: bool) -> None:
        self.running_of_row.pop(req.kv.req_pool_idx, None)
        if req.finished():
            self.manager.counters.finished(req.spec_verify_ct or len(req.output_ids))

    def count_prompt(self, req: Req, hit_tokens: int) -> None:
        """``req`` begins to compute its prompt, of which the cache spared ``hit_tokens``."""
        self.manager.counters.prompt_tokens += len(req.full_untruncated_fill_ids)
        self.manager.counters.hit_tokens += hit_tokens
        self.admission.lookahead.guard.began(req.rid, hit_tokens)

    # -- publishing ---------------------------------------------------------------------------

    def checkpoint(self, req: Req, *, up_to: int, **kwargs: Any) -> None:
        """Put the request's whole pages up to ``up_to`` into the tree and go on with its copy."""
        if not self.manager.prefix_cache:
            return
        running: Running = req.lock.receipt
        first = running.tree_pages
        before = running.row[first:].copy()
        tokens = _tokens_and_next(req, up_to)
        keep = self._lengths_to_keep(req, up_to)
        self.manager.publish(running, history(req, req), self.keys(tokens, up_to), keep)
        row = running.row[: running.tree_pages]
        self.note_published(namespace(req, req), tokens[:up_to], row, first)
        self._rewrite_row(req, running, first, before)
        self.run_copies()
        req.kv.cache_protected_len = running.tree_pages * self.page_size

    def note_published(self, namespace: Namespace, tokens: Tokens, row: Ids, first: int) -> None:
        """``row``, virtual pages of ``tokens``, is in the tree now, from page ``first`` on anew."""
        if self.kv_events is not None:
            self.kv_events.published(namespace, tokens, row, first)

    def _lengths_to_keep(self, req: Req, up_to: int) -> list[int]:
        """Where the next request may go on from: the end of the prompt or a little before it, at
        least the one token that the same prompt computes again, and the end of the answer. Nobody
        stops where a chunk happened to end."""
        prompt = len(req.origin_input_ids)
        if req.finished() or up_to > prompt:
            return [up_to]
        return self._hits_at_end(prompt) if up_to == prompt else []

    def _hits_at_end(self, prompt: int) -> list[int]:
        slack = max(1, self.manager.prompt_slack(prompt))
        return [prompt - slack, prompt]

    def wanted_hits(self, req: Req, start: int) -> list[int]:
        """Where later requests may go on from in what ``req`` computes from ``start`` on: near the
        end of its prompt, where it leaves a known history, and where requests that wait do."""
        prompt, running = len(req.origin_input_ids), req.lock.receipt
        wanted = self._hits_at_end(prompt)
        if self.manager.policy.keep_branches and running.branch_ahead:
            wanted.append(running.hit.matched_pages * self.page_size)
        if self.manager.policy.waiting_prefixes and start < prompt:
            wanted += self.admission.partings(req, start)
        return wanted

    def _rewrite_row(self, req: Req, running: Running, first: int, before: Ids) -> None:
        now = running.row[first:]
        changed = np.flatnonzero(now != before)
        if not len(changed):
            return
        start, stop = first + int(changed[0]), first + int(changed[-1]) + 1
        row = self.token_ids(running.row[start:stop])
        where = (req.kv.req_pool_idx, slice(start * self.page_size, stop * self.page_size))
        self.req_to_token_pool.write(where, to_device(row, self.device))
        self.last_page[req.kv.req_pool_idx] = running.row[-1]

    def token_ids(self, virtual: Ids) -> NDArray[np.int32]:
        """Virtual token ids of whole virtual pages, in order, as req_to_token has them."""
        first = (virtual * self.page_size).astype(np.int32)
        return (first[:, None] + np.arange(self.page_size, dtype=np.int32)).ravel()

    def prefix_device_indices(self, req: Req) -> torch.Tensor:
        pages = self.manager.tree.pages(req.last_node.path)
        return to_device(self.token_ids(pages)[: req.prefix_len], self.device).long()

    # -- chunks and decoding ------------------------------------------------------------------

    def save_states(self, req: Req, start: int, stop: int) -> None:
        """Have the step that takes ``req`` from ``start`` to ``stop`` tokens leave snapshots."""
        prompt = len(req.origin_input_ids)
        partings = self.admission.partings(req, start) if start < prompt else ()
        self.manager.save_states(
            req.lock.receipt,
            start,
            stop,
            prompt,
            partings,
            crowded=bool(self.admission.now.waiting),
        )

    def slide_for_decode(self, requests: Sequence[Req]) -> int:
        """Slide the windows of requests whose next token opens a page; how many those are."""
        pages = 0
        for req in requests:
            length = req.kv.kv_committed_len
            if length % self.page_size == 0:
                self.manager.slide(req.lock.receipt, length)
                pages += 1
        return pages

    def slide_for_drafts(self, requests: Sequence[Req]) -> int:
        """Slide the windows of ``requests`` to what is committed; how many pages their drafts
        lack behind that."""
        manager, pages = self.manager, 0
        for req in requests:
            manager.commit(req.lock.receipt, req.kv.kv_committed_len)
            stop = req.kv.kv_committed_len + manager.tail_tokens
            pages += manager.new_pages(req.lock.receipt, stop)
        return pages

    # -- room ---------------------------------------------------------------------------------

    def run_copies(self) -> None:
        """Copy to other tiers what has been decided, before a step writes to the pool: there are
        no other tiers."""

    def evict(self, params: EvictParams) -> EvictResult:
        evicted = self.manager.evict(-(-params.num_tokens // self.page_size))
        return EvictResult(num_tokens_evicted=evicted * self.page_size)

    def observe_evictions(self, started: float) -> None:
        """Report to SGLang's metrics what the reservation begun at ``started`` evicted."""
        total = sum(self.manager.counters.evicted.values())
        total += sum(self.manager.counters.cascaded.values())
        pages, self._evicted_pages = total - self._evicted_pages, total
        self.update_eviction_metrics(pages * self.page_size, started)

    def evictable_size(self) -> int:
        memory = self.manager.memory
        return (memory.num_tree - memory.num_tree_pinned) * self.page_size

    full_evictable_size = evictable_size

    def protected_size(self) -> int:
        return self.manager.memory.num_tree_pinned * self.page_size

    full_protected_size = protected_size

    def total_size(self) -> int:
        return self.manager.memory.num_tree * self.page_size

    def supports_prefix_sharing(self) -> bool:
        return self.manager.prefix_cache

    def supports_swa(self) -> bool:
        # Beam search writes rows that belong to no request, and asks this before it starts.
        return True

    def awaits_storage(self, req: ReqView) -> bool:
        """Whether ``req`` waits for what is being read of its prefix: nothing is."""
        return False

    def storage_stats(self) -> dict[str, Any] | None:
        """The numbers of storage below the pool; None where there can be none."""
        return None

    def sanity_check(self) -> None:
        self.manager.check()

    def available_and_evictable_str(self) -> str:
        return describe_room(self.manager) + "\n"

    def pretty_print(self) -> None:
        logger.info(describe_room(self.manager))


def timed_reserve(
    cache: JengaPrefixCache,
    demands: Sequence[tuple[Running, int]],
    wanted: Sequence[Wanted] | None = None,
) -> bool:
    """`Manager.reserve`, with its evictions reported to SGLang's metrics."""
    started = time.perf_counter()
    reserved = cache.manager.reserve(demands, wanted)
    cache.observe_evictions(started)
    return reserved


def _tokens_and_next(req: Req, count: int) -> Tokens:
    """The first ``count`` tokens of ``req``, and the one behind them if it is known. Not to be
    kept: a live view forbids the request to grow its array."""
    tokens: Tokens = np.frombuffer(req.full_untruncated_fill_ids, np.int64)[: count + 1]
    answered = count - len(req.origin_input_ids)
    if len(tokens) == count and 0 <= answered < len(req.output_ids):
        return np.append(tokens, req.output_ids[answered])
    return tokens
