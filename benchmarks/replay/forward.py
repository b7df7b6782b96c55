"""Stands in for the model: every request's next token is the one that the trace has there."""

from typing import Any

from benchmarks.replay.drafts import Drafting
from benchmarks.replay.trace import Tokens

# What a chunk of an unfinished prompt returns, and a step past the end of an answer, which overlap
# launches before it knows; SGLang must never keep it.
NO_TOKEN = 0


class ReplayError(AssertionError):
    """SGLang did something during the replay that a correct server never does."""


class TraceForward:
    """Replaces `forward_batch_generation`. `outputs` maps each live request to its tokens."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tokens] = {}

    def __call__(self, batch: Any, **kwargs: Any) -> Any:
        """Return the next token of each request of a batch, from the KV length alone."""
        import torch
        from sglang.srt.managers.utils import GenerationBatchResult

        tokens = [
            self._next_token(req, seq_len)
            for req, seq_len in zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=True)
        ]
        next_token_ids = torch.tensor(tokens, dtype=torch.int64)
        return GenerationBatchResult(next_token_ids=next_token_ids)

    def _next_token(self, req: Any, seq_len: int) -> int:
        """Return output number `seq_len - prompt`, where `seq_len` counts this step's token."""
        index = seq_len - len(req.origin_input_ids)
        outputs = self.outputs[req.rid]
        return int(outputs[index]) if 0 <= index < len(outputs) else NO_TOKEN


class DraftingForward(TraceForward):
    """Replaces that of a worker that drafts: each step of a decode gives as many of the trace's
    tokens as it would have accepted, and one more."""

    def __init__(self, drafting: Drafting) -> None:
        super().__init__()
        self.drafting = drafting

    def __call__(self, batch: Any, **kwargs: Any) -> Any:
        """Return the tokens of a batch: of a prompt's chunk one for each request, of a decode
        `verified_tokens` for each, of which the first so many count."""
        import torch
        from sglang.srt.managers.utils import GenerationBatchResult
        from sglang.srt.speculative.eagle_info import EagleDraftInput

        lengths = batch.seq_lens_cpu.tolist()
        pairs = list(zip(batch.reqs, lengths, strict=True))
        if batch.forward_mode.is_extend():
            tokens = [[self._next_token(req, length)] for req, length in pairs]
            width, new_lengths = 1, batch.seq_lens
        else:
            tokens = [self._accepted(req, length) for req, length in pairs]
            width = self.drafting.verified_tokens
            counts = torch.tensor([len(own) for own in tokens], dtype=batch.seq_lens.dtype)
            new_lengths = batch.seq_lens + counts
        flat = [own + [NO_TOKEN] * (width - len(own)) for own in tokens]
        bonus = torch.tensor([own[-1] for own in tokens], dtype=torch.int64)
        nothing = torch.zeros((len(tokens), 1))
        result = GenerationBatchResult(
            next_token_ids=torch.tensor(flat, dtype=torch.int64).flatten(),
            accept_lens=torch.tensor([len(own) for own in tokens], dtype=torch.int32),
            new_seq_lens=new_lengths,
            speculative_num_draft_tokens=self.drafting.verified_tokens,
            next_draft_input=EagleDraftInput(
                topk_p=nothing, topk_index=nothing.long(), bonus_tokens=bonus
            ),
        )
        if publish := kwargs.get("on_publish"):
            publish(new_lengths)
        return result

    def _accepted(self, req: Any, length: int) -> list[int]:
        """What follows the last token that is known, whose KV this step computes: ``length`` tokens
        have theirs."""
        first = length + 1 - len(req.origin_input_ids)
        left = self.outputs[req.rid][first:]
        count = 1 + self.drafting.accepted(req.rid, length)
        return [int(token) for token in left[:count]] or [NO_TOKEN]


def unfinished_prompts(batch: Any) -> list[tuple[Any, int]]:
    """Return requests whose history is not all in KV after this step, with their output count.

    Such a request must not get an output token from this step. One that decodes has its last output
    computed by the step itself, or, with drafts, not before.
    """
    if not batch.forward_mode.is_extend():
        return []
    return [
        (req, len(req.output_ids))
        for req, seq_len in zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=True)
        if seq_len < len(req.origin_input_ids) + len(req.output_ids)
    ]


def require_no_early_output(unfinished: list[tuple[Any, int]]) -> None:
    """Raise if a request was given an output token before its prompt was done."""
    for req, count in unfinished:
        if len(req.output_ids) != count:
            raise ReplayError(f"request {req.rid} decoded before its prompt was done")
