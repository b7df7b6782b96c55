"""Stands in for the model: every request's next token is the one that the trace has there."""

from typing import Any

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


def unfinished_prompts(batch: Any) -> list[tuple[Any, int]]:
    """Return requests whose history is not all in KV after this step, with their output count.

    Such a request must not get an output token from this step.
    """
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
