"""SGLang's token-to-KV allocator, counted in virtual tokens; bytes are the core's business."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.allocator.base import BaseTokenToKVPoolAllocator

from jenga_sglang import settings
from jenga_sglang.adapter.cache.budget import JengaPrefillBudget
from jenga_sglang.adapter.cache.watchdog import Watchdog
from jenga_sglang.adapter.observe.report import digest
from jenga_sglang.core.admission import (
    fits_alone,
    growth_room,
    longest_prompt,
    longest_request,
    request_pages,
    weigh,
)
from jenga_sglang.core.books.corrupt import CorruptPool, present
from jenga_sglang.core.ids import ceil_div
from jenga_sglang.core.whole import longest_of

if TYPE_CHECKING:
    from jenga_sglang.adapter.kv_pool import JengaKVPool

logger = logging.getLogger(__name__)


class JengaAllocator(BaseTokenToKVPoolAllocator):
    """Answers the scheduler's questions about room. Pages themselves are handed out per request,
    by `jenga_sglang.adapter.cache.batch_alloc`, because placement depends on whose they are."""

    def __init__(self, pool: JengaKVPool) -> None:
        self.manager = pool.manager
        super().__init__(
            size=pool.size,
            page_size=pool.page_size,
            dtype=pool.dtype,
            device=pool.device,
            kvcache=pool,
            need_sort=False,
        )
        self._checked_at = -1
        self._asked_encoder_tokens = self._asked_step_tokens = 0
        self.watchdog = Watchdog(settings.current().watchdog_seconds)
        self._logs_digest = settings.current().log_digest

    def available_size(self) -> int:
        return self.manager.memory.num_free_virtual * self.page_size

    def get_all_free_pages(self) -> None:
        return None

    def create_prefill_budget(
        self, tree_cache: Any, *, num_mixed_decode_tokens: int = 0
    ) -> JengaPrefillBudget:
        return JengaPrefillBudget(
            tree_cache.admission, num_mixed_decode_tokens=num_mixed_decode_tokens
        )

    @contextmanager
    def asking_with(self, encoder_tokens: int, inputs: Any = None) -> Iterator[None]:
        """Meanwhile `why_refused` and `max_new_tokens_for_memory` are about a request of which an
        encoder makes the first ``encoder_tokens``, and with these multimodal ``inputs``: SGLang
        does not pass that on."""
        images = self._kvcache.whole_images
        whole = images.of_prompt(inputs) if images else ()
        self._asked_encoder_tokens = encoder_tokens
        self._asked_step_tokens = longest_of(whole, self.page_size)
        try:
            yield
        finally:
            self._asked_encoder_tokens = self._asked_step_tokens = 0

    def why_refused(self, input_tokens: int, chunk_size: int | None) -> str | None:
        """Why no request with a prompt of this length can ever be served, or None."""
        if input_tokens == 0:
            return "The prompt is empty: send at least one token."
        how = self._how_computed(input_tokens, chunk_size)
        if fits_alone(self.manager, input_tokens + 1, *how):
            return None
        longest = longest_prompt(self.manager, *how) + 1
        if longest == self.manager.max_length:
            return (
                f"The prompt of {input_tokens:,} tokens and a token of output are longer than "
                f"--context-length, {longest:,} tokens."
            )
        return (
            f"The prompt of {input_tokens:,} tokens does not fit into the KV pool: the longest "
            f"request that does has {longest:,} tokens, at least one token of output included."
        )

    def _how_computed(self, input_tokens: int, chunk_size: int | None) -> tuple[int, int]:
        """Tokens of a prompt that one step computes at most, and pages that an encoder makes."""
        # SGLang has -1 for prompts that are not cut.
        chunk = chunk_size if chunk_size and chunk_size > 0 else input_tokens
        fresh = min(input_tokens, max(chunk, self._asked_step_tokens))
        return fresh, self._asked_encoder_tokens // self.page_size

    def max_new_tokens_for_memory(
        self,
        input_tokens: int,
        max_new_tokens: int,
        *,
        token_capacity: int,
        sliding_window_size: int | None,
        chunk_size: int | None,
    ) -> int | None:
        """Clip generation to what an empty pool holds; None when the prompt alone cannot fit."""
        how = self._how_computed(input_tokens, chunk_size)
        if fits_alone(self.manager, input_tokens + max(1, max_new_tokens), *how):
            return max(0, max_new_tokens)
        longest = longest_request(self.manager, *how)
        return min(max_new_tokens, longest - input_tokens) if input_tokens < longest else None

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> bool | None:
        """Nothing to do: a reservation evicts exactly what it needs when it is made."""
        return None

    def check_decode_capacity(
        self, *, num_tokens: int, tree_cache: Any, requests: Any = None, spec_algorithm: Any = None
    ) -> bool:
        """Whether each request's next token fits, or its drafts, windows slid first."""
        requests = present(requests, "a decode step of no requests")
        drafts = self.manager.tail_tokens
        ask = tree_cache.slide_for_drafts if drafts else tree_cache.slide_for_decode
        return self.manager.make_way(ask(requests))

    # -- a prompt that another server has computed --------------------------------------------

    def prealloc_ceiling_fits(self, full_tokens: int, swa_tokens: int) -> bool:
        """Whether a prompt and the room to decode on would fit into an empty pool."""
        return fits_alone(self.manager, min(full_tokens, self.manager.max_length), 1)

    def prealloc_fits(
        self,
        tree_cache: Any,
        full_tokens: int,
        swa_tokens: int,
        *,
        full_budget_tokens: int,
        swa_budget_tokens: int | None = None,
    ) -> bool:
        """Whether a prompt and the room to decode on fit beside what SGLang has promised to the
        requests that run: what the budget of tokens lacks of all there are."""
        manager = self.manager
        free_tokens = self.available_size() + tree_cache.evictable_size()
        promised = ceil_div(max(0, free_tokens - full_budget_tokens), self.page_size)
        room = growth_room(manager)
        beside = [min(promised, most) for most in room]
        pages = request_pages(manager, min(full_tokens, manager.max_length), 1, 0)
        return full_tokens <= full_budget_tokens and not weigh(manager, beside, pages).missing

    def get_cpu_copy(
        self, indices: torch.Tensor, mamba_indices: Any = None, req_pool_index: int | None = None
    ) -> Any:
        """What a request that gives way needs to go on later, on the host: no more than would be
        sent of it. ``indices`` are the tokens of its row, all it has computed."""
        running = self._kvcache.running_of_row[present(req_pool_index, "a row to save")]
        return self._kvcache.components.save(running, len(indices))

    def load_cpu_copy(
        self,
        kv_cache_cpu: Any,
        indices: torch.Tensor,
        mamba_indices: Any = None,
        req_pool_index: int | None = None,
    ) -> None:
        """Put what `get_cpu_copy` has made into the pages that the request has been given."""
        running = self._kvcache.running_of_row[present(req_pool_index, "a row to load")]
        self._kvcache.components.load(kv_cache_cpu, running, len(indices))

    def verify_byte_accounting(self) -> list[str]:
        """Recount the pool when anything changed since the last time; violations as text."""
        if self._checked_at == self.manager.changes:
            return []
        try:
            self.manager.check_idle()
        except CorruptPool as error:
            return [f"jenga: {error}"]
        self._checked_at = self.manager.changes
        if self._logs_digest:
            logger.info("jenga digest %s", digest(self.manager))
        return []

    @property
    def is_recounted(self) -> bool:
        """Whether the idle check has seen the pool as it is now, and found it sound."""
        return self._checked_at == self.manager.changes

    def clear(self) -> None:
        """The prefix cache's `reset` starts the books anew, for both."""

    def alloc(self, need_size: int) -> torch.Tensor:
        raise NotImplementedError(
            "--memory-backend jenga hands out pages per request, not bare token slots: the SGLang "
            "feature that asked for them is not supported"
        )

    def free(self, free_index: torch.Tensor) -> None:
        raise NotImplementedError(
            "--memory-backend jenga frees pages per request, not bare token slots: the SGLang "
            "feature that freed them is not supported"
        )
