"""Servers that draft, and what they have accepted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from e2e.answers import Answer
from e2e.stream import Request, StreamShape, make_stream

# What follows equal tokens in earlier answers; with breadth 1, one of them. Room for as many nodes
# as SGLang's default takes seconds to make.
NGRAM = {
    "speculative_algorithm": "NGRAM",
    "speculative_ngram_max_bfs_breadth": 1,
    "speculative_ngram_capacity": 1_000_000,
}

STOP_TOKENS = tuple(range(60, 124))


def overlapping() -> None:
    """SGLang overlaps no steps where it drafts on a CPU, for its own kernels there cannot."""
    from sglang.srt.arg_groups import speculative_hook

    speculative_hook._disable_overlap_schedule_for_cpu = lambda server_args: None


def drafting_stream(seed: int = 1) -> list[Request]:
    """Requests that come twice, so that whole answers can be foreseen. Those that
    are short end with a token that others do not mind, so in the middle of what a step accepts."""
    shape = StreamShape(num_requests=30, longest_prompt=200, longest_answer=100)
    requests = make_stream(shape, seed)
    requests = [r if r.ignore_eos else replace(r, stop_tokens=STOP_TOKENS) for r in requests]
    return [*requests, *requests]


def accepted(answers: Sequence[Answer]) -> list[int]:
    """How many steps accepted 0, 1, … drafts, up to the most that any did."""
    steps = Counter[int]()
    for answer in answers:
        steps.update(dict(enumerate(answer.accepted)))
    most = max((n for n, count in steps.items() if count), default=-1)
    return [steps[n] for n in range(most + 1)]


def meet_drafts(meet: Callable[[int, int, torch.Tensor], object]) -> None:
    """Have draft workers call ``meet`` with what they draft, (steps,) tokens, which it may change:
    for which request, and behind how many tokens that have rows."""
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker
    from sglang.srt.speculative.frozen_kv_mtp_worker_v2 import FrozenKVMTPDraftWorker

    for worker in (EagleDraftWorker, FrozenKVMTPDraftWorker):
        _meet_drafts_of(worker, meet)


def _meet_drafts_of(drafting: Any, meet: Callable[[int, int, torch.Tensor], object]) -> None:
    draft, draft_forward = drafting.draft, drafting.draft_forward
    asked: list[tuple[int, int]] = []

    def ask(worker: Any, batch: Any, **kwargs: Any) -> Any:
        numbers = [int(req.rid) for req in batch.reqs]
        asked[:] = zip(numbers, batch.seq_lens.tolist(), strict=True)
        return draft(worker, batch, **kwargs)

    def answer(worker: Any, forward_batch: Any) -> Any:
        drafted = draft_forward(worker, forward_batch)
        for (number, length), drafts in zip(asked, drafted[2], strict=True):
            meet(number, length, drafts)
        return drafted

    drafting.draft, drafting.draft_forward = ask, answer


NOTED: list[tuple[int, int, list[int]]] = []  # in the process of a job


def note_drafts() -> None:
    """Have draft workers note for whom they draft, how many tokens of it have rows, and what."""
    meet_drafts(lambda number, length, drafts: NOTED.append((number, length, drafts.tolist())))


def noted(scheduler: Any) -> list[tuple[int, int, list[int]]]:
    """What has been noted so far."""
    return NOTED
