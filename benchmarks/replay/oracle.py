"""Checks by content that a request's row of token ids names the request's own tokens.

The dummy model writes no KV. Instead this remembers which token was computed into which id, and
compares at every prompt chunk: a prefix taken from the cache must hold exactly the prompt's tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.replay.drafts import Drafting
from benchmarks.replay.forward import ReplayError
from benchmarks.replay.geometry import Geometry
from benchmarks.replay.recorder import Step
from benchmarks.replay.trace import Tokens

_NOTHING = -1


class TokenOracle:
    """`check` is called with every batch, after its allocation and before it runs. ``answers`` are
    the outputs of the trace by request: with overlap SGLang has not seen the last token yet."""

    def __init__(
        self,
        geometry: Geometry,
        req_to_token: Any,
        answers: Mapping[str, Tokens],
        drafting: Drafting | None = None,
    ) -> None:
        self._geometry = geometry
        self._drafting = drafting
        self._answers = answers
        self._rows = req_to_token.numpy()
        # Token computed into each id, `_NOTHING` for none; grows with the largest id seen.
        self._stored: Tokens = np.full(1, _NOTHING, dtype=np.int64)

    def check(self, batch: Any, step: Step) -> None:
        """Store the tokens that a batch computes; raise if a chunk's history is another's."""
        if self._drafting is not None and step.decodes:
            self._store_drafts(batch, step, self._drafting)
            return
        spans = [(start, end) for _, start, end in step.chunks]
        spans += [(length - 1, length) for _, length in step.decodes]
        written = batch.out_cache_loc.numpy()
        self._grow(int(written.max(initial=0)) + 1)
        offset = 0
        for req, (start, end) in zip(batch.reqs, spans, strict=True):
            ids = written[offset : offset + end - start]
            self._stored[ids] = self._history(req)[start:end]
            offset += end - start
        for req, (start, end) in zip(batch.reqs, spans[: len(step.chunks)], strict=False):
            self._check_row(req, start, end)

    def _store_drafts(self, batch: Any, step: Step, drafting: Drafting) -> None:
        """Behind the ``length`` tokens that a request has, those that are right are its own, and
        what was drafted behind them is nobody's."""
        for req, (rid, length) in zip(batch.reqs, step.decodes, strict=True):
            row = self._rows[req.kv.req_pool_idx]
            ids = row[length : length + drafting.verified_tokens]
            self._grow(int(ids.max()) + 1)
            right = 1 + drafting.accepted(rid, length)
            tokens = self._history(req)[length : length + right]
            self._stored[ids] = _NOTHING
            self._stored[ids[: len(tokens)]] = tokens

    def _check_row(self, req: Any, start: int, end: int) -> None:
        """Compare what a chunk that starts at `start` reads: everything that some group needs."""
        begin = min(group.needed_start(start + 1) for group in self._geometry.row_groups)
        ids = self._rows[req.kv.req_pool_idx, begin:end]
        if not np.array_equal(self._stored[ids], self._history(req)[begin:end]):
            raise ReplayError(f"request {req.rid} reads tokens that are not its own")

    def _grow(self, size: int) -> None:
        if size > len(self._stored):
            more = np.full(max(size, 2 * len(self._stored)) - len(self._stored), _NOTHING)
            self._stored = np.concatenate([self._stored, more])

    def _history(self, req: Any) -> Tokens:
        """Return prompt and output tokens of a request."""
        parts = (req.origin_input_ids, self._answers.get(req.rid, ()))
        return np.concatenate([np.array(part, dtype=np.int64) for part in parts])
