"""Admission on joint bytes: what one prefill pass may take, asked of the core in whole pages.

SGLang's `PrefillAdder` drives it: it adds up what running requests may still decode in
``total_offset``, offers candidates to ``check_prefill``, and charges the admitted to ``reserve``.
A prompt is never truncated here: two truncated requests in one pass would overwrite each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from jenga_sglang.adapter.cache.admission_pass import Admission, Refusal, next_chunk
from jenga_sglang.core.admission import (
    Weighing,
    fits_free,
    growth_room,
    request_pages,
    step_pages,
    tails_to_come,
    weigh,
    whole_tokens_left,
)
from jenga_sglang.core.books.corrupt import present
from jenga_sglang.core.running import Running
from jenga_sglang.core.whole import longest_step, shortest_step


class JengaPrefillBudget:
    """One pass's reservations, in pages per group, on top of what is pinned now."""

    load_back_needs_full_tokens = False

    _candidate: list[int] | None = None
    # Its length, what one step computes of it at most, and the pages that an encoder makes.
    _asked = (0, 0, 0)
    # A chunked prompt that cannot go on keeps everybody else out, or it might never.
    _blocked = False
    # A prompt is cut in this pass, perhaps before an image and with tokens of the chunk to
    # spare: SGLang computes one prompt in chunks at a time, so no other may be cut.
    _has_cut = False
    # Whether the candidate is, if it is admitted: its load may fail, and it is checked again.
    _cuts = False
    # What the candidate takes beyond what has been loaded of it.
    _after_load: list[int] | None = None

    def __init__(self, admission: Admission, *, num_mixed_decode_tokens: int = 0) -> None:
        self.manager = manager = admission.manager
        self.page_size = manager.page_size
        self.total_offset = num_mixed_decode_tokens + admission.now.promised_elsewhere
        self.admission = admission
        self._pass = admission.now
        self._pass.load_room = self
        # Of the last candidate that did not fit; the pass before has its own.
        self._pass.refusal = None
        self._pending = [0] * len(manager.dependencies)
        self._room = growth_room(manager)
        self._tails = tails_to_come(manager)

    def ceil_paged_tokens(self, tokens: int) -> int:
        return -(-tokens // self.page_size) * self.page_size

    # -- what PrefillAdder asks ---------------------------------------------------------------

    def check_prefill(
        self,
        *,
        extend_input_len: int,
        total_tokens: int,
        max_new_tokens: int,
        input_tokens: int,
        swa_host_hit_length: int,
        chunk_limit: int | None,
        auxiliary_swa_host_hit_length: int = 0,
    ) -> tuple[bool, int | None]:
        """Whether the candidate fits beside everything admitted and everything still to grow, and
        is worth what must be evicted for it."""
        candidate = self._pass.candidate
        encoder_pages = candidate.encoder_pages if candidate else 0
        prefix = input_tokens - extend_input_len
        if candidate is not None and chunk_limit is not None:
            chunk_limit = self._first_step(candidate, prefix, chunk_limit, input_tokens)
        fresh = extend_input_len if chunk_limit is None else min(extend_input_len, chunk_limit)
        if candidate is not None:
            # What is in the host only has to be loaded: it takes room as if it were computed.
            prefix = min(prefix, candidate.num_pages * self.page_size)
        self._asked = (input_tokens + max_new_tokens, fresh, encoder_pages)
        self._candidate = self._pages_beyond(prefix)
        if self.manager.memory.state_groups:
            snapshots = self.admission.snapshots_to_come()
            self._candidate = self._with_snapshots(self._candidate, snapshots)
        is_cut = chunk_limit is not None and self.ceil_paged_tokens(extend_input_len) > chunk_limit
        if self._blocked or (self._has_cut and is_cut):
            return False, None
        fits = self._fits_at_last if candidate else self._fits
        if not fits(self._candidate):
            weighing = self.weigh_candidate()
            self._pass.refusal = Refusal(weighing, "memory", weighing.missing)
            if candidate is not None and len(self.manager.running) == 1:
                # Its prefix lies scattered among pages that only the same groups can use. Nobody
                # will leave and make room: it is given up for the next time.
                self._pass.hindering = candidate.hit.path
        elif short := self._not_worth():
            self._pass.refusal = Refusal(self.weigh_candidate(), "cache", short)
            if candidate is not None:
                self.admission.lookahead.predict()
        else:
            self._cuts = is_cut
            return True, chunk_limit
        return False, None

    def _first_step(self, candidate: Running, prefix: int, most: int, length: int) -> int:
        """Tokens that a step may compute of the candidate beyond ``prefix``: 0 leaves it to another
        pass, where it has ``most`` of a chunk that ends inside an image, and others the rest."""
        whole, page_size = candidate.hit.whole, self.page_size
        # SGLang takes a prompt to its end where there is room for its last page.
        end = prefix + self.ceil_paged_tokens(length - prefix)
        step = longest_step(prefix, most, end, whole, page_size)
        if step or any(self._pending):
            return step
        return self.ceil_paged_tokens(shortest_step(prefix, end, whole, page_size))

    def _pages_beyond(self, prefix: int) -> list[int]:
        length, fresh, encoder_pages = self._asked
        return request_pages(self.manager, length, fresh, prefix, encoder_pages)

    def _with_snapshots(self, pages: Sequence[int], count: int) -> list[int]:
        """``pages``, and room for ``count`` snapshots of states."""
        with_snapshots = list(pages)
        for g in self.manager.memory.state_groups if count else ():
            with_snapshots[g] += count
        return with_snapshots

    def _not_worth(self) -> float:
        """Large pages that the candidate would take from what others wait for and that is worth
        more; 0 when there are none. SGLang has pinned the candidate's own prefix by now."""
        demand = self._with_pending(self._checked_candidate)
        lookahead = self.admission.lookahead
        if fits_free(self.manager, demand):
            return 0
        if lookahead.guard.has_waited_enough and not any(self._pending):
            return 0  # it waits first: nobody was admitted before it in this pass
        self.admission.look_ahead()
        return lookahead.not_worth(demand, len(self.manager.running) - 1)

    def can_allocate_prefill(
        self,
        *,
        paged_input: int,
        extend_input_len: int,
        max_new_tokens: int,
        chunk_limit: int | None,
    ) -> bool:
        fresh = extend_input_len if chunk_limit is None else min(extend_input_len, chunk_limit)
        self._candidate = request_pages(self.manager, extend_input_len + max_new_tokens, fresh, 0)
        return self._fits(self._candidate)

    def available_chunk_tokens(self, chunk_limit: int) -> int | None:
        return chunk_limit if chunk_limit > 0 else None

    def fit_chunk(
        self, *, extend_input_len: int, max_new_tokens: int, chunk_limit: int
    ) -> int | None:
        """The whole next chunk, or None for this pass."""
        if (running := self._pass.chunked) is not None:
            chunk_limit = next_chunk(running, extend_input_len, chunk_limit)
        tokens = min(extend_input_len, chunk_limit)
        pages = -(-tokens // self.page_size)
        if running is not None:
            # Not a page more than it takes: the prompt may be one that fills the pool.
            pages = self.manager.new_pages(running, running.length + tokens)
        self._candidate = step_pages(self.manager, pages)
        if self.manager.can_serve(self._with_pending(self._candidate)):
            self._has_cut |= tokens < extend_input_len
            # For whom it shares the step with; the chunk itself goes on without.
            self._candidate = self._with_snapshots(self._candidate, self._pass.chunked_snapshots)
            return chunk_limit
        self._blocked = True
        weighing = weigh(self.manager, self._pending, self._candidate)
        self._pass.refusal = Refusal(weighing, "chunk", weighing.missing)
        return None

    def reserve(
        self,
        extend_input_len: int,
        max_new_tokens: int,
        *,
        extra_tokens: int = 0,
        chunk_limit: int | None = None,
        is_chunked_continuation: bool = False,
    ) -> None:
        candidate = self._candidate
        if candidate is None:
            length = extend_input_len + max_new_tokens
            candidate = request_pages(self.manager, length, extend_input_len, 0)
        self._pending = self._with_pending(candidate)
        self._has_cut |= self._cuts
        self._candidate, self._cuts = None, False

    def has_capacity(self) -> bool:
        return self._fits_at_last([1] * len(self._pending))

    def prepare_load_back(self, **kwargs: Any) -> bool:
        """Whether a load may be tried: it is asked for its room when it is made."""
        return True

    def beside_load(self, prefix: int) -> list[int]:
        """Pages per group that must be left when the first ``prefix`` tokens of the candidate have
        been loaded: for what is admitted, for what still grows, and for the rest of it."""
        self._after_load = rest = self._pages_beyond(prefix)
        return self._with_pending([a + b for a, b in zip(self._growth(), rest, strict=True)])

    def has_loaded(self) -> None:
        """The candidate holds now what `beside_load` was told of."""
        self._candidate = self._after_load

    @property
    def remaining_total(self) -> int:
        """Tokens that would still fit if every group had to hold all of them."""
        return whole_tokens_left(self.manager, self._with_pending(self._growth()))

    @property
    def remaining_current(self) -> int:
        return whole_tokens_left(self.manager, self._pending)

    @property
    def remaining_swa(self) -> int:
        return 0

    def weigh_candidate(self) -> Weighing:
        """The last candidate, beside everything admitted and everything still to grow."""
        pending = self._with_pending(self._growth())
        return weigh(self.manager, pending, self._checked_candidate)

    @property
    def _checked_candidate(self) -> Sequence[int]:
        return present(self._candidate, "no request has been checked")

    # -- arithmetic ---------------------------------------------------------------------------

    def _fits(self, pages: Sequence[int]) -> bool:
        if self._blocked:
            return False
        grown = [a + b for a, b in zip(self._growth(), pages, strict=True)]
        return self.manager.can_serve(self._with_pending(grown))

    def _fits_at_last(self, pages: Sequence[int]) -> bool:
        """`_fits`, but that running requests give up what follows their answers first."""
        return self._fits(pages) or (self.manager.let_go_of_answers() and self._fits(pages))

    def _with_pending(self, pages: Sequence[int]) -> list[int]:
        return [a + b for a, b in zip(self._pending, pages, strict=True)]

    def _growth(self) -> list[int]:
        """Pages that running requests may still take, with the drafts behind their last token,
        which SGLang leaves out: no group more than it has room to grow."""
        pages = ceil(max(0.0, self.total_offset) / self.page_size) + self._tails
        return [min(pages, room) for room in self._room]
