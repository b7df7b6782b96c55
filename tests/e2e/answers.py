"""What a server answered, and how two servers' answers to one stream differ."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tolerance:
    """How far logprobs may lie apart, and how close two tokens must be in stock's own logprobs to
    have no order that the arithmetic could tell."""

    logprob: float
    tie: float


FLOAT32 = Tolerance(1e-4, 1e-5)


@dataclass(frozen=True)
class Answer:
    """Output tokens with the logprob of each, and the two likeliest (logprob, token) there. Where
    tokens are drafted, ``accepted[n]`` steps accepted n drafts."""

    tokens: list[int]
    logprobs: list[float]
    likeliest: list[list[tuple[float, int]]]
    cached_tokens: int
    retractions: int
    finish_reason: str
    accepted: tuple[int, ...] = ()
    # Of a request that only reads its prompt: its embedding, or logprobs of labels behind it.
    pooled: list[float] = field(default_factory=list)


@dataclass
class Comparison:
    """Requests by outcome; ``ties`` and ``differences`` say in words what happened."""

    equal: int = 0
    ties: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    worst_logprob_error: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.equal} equal, {len(self.ties)} ties, {len(self.differences)} different, "
            f"worst logprob error {self.worst_logprob_error:.1e}"
        ]
        return "\n".join(lines + self.ties + self.differences[:20])


def compare(
    stock: Sequence[Answer], jenga: Sequence[Answer], tolerance: Tolerance = FLOAT32
) -> Comparison:
    """Compare answer by answer; what is neither equal nor a tie is a difference."""
    result = Comparison()
    for number, (ours, theirs) in enumerate(zip(jenga, stock, strict=True)):
        problem, is_tie, error = _compare_one(theirs, ours, tolerance)
        result.worst_logprob_error = max(result.worst_logprob_error, error)
        if problem is None:
            result.equal += 1
        else:
            outcome = result.ties if is_tie else result.differences
            outcome.append(f"request {number}: {problem}")
    return result


def _compare_one(
    stock: Answer, jenga: Answer, tolerance: Tolerance
) -> tuple[str | None, bool, float]:
    """Return what differs (None: nothing), whether it is a tie, and the logprob error before."""
    pairs = list(zip(stock.tokens, jenga.tokens, strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    errors = [abs(a - b) for a, b in zip(stock.logprobs[:same], jenga.logprobs[:same], strict=True)]
    # NaN compares false with everything: count it as infinitely far off.
    error = max((e if e == e else float("inf") for e in errors), default=0.0)
    if error > tolerance.logprob:
        where = next(i for i, e in enumerate(errors) if not e <= tolerance.logprob)
        return (
            f"logprob of token {where} is {jenga.logprobs[where]}, stock {stock.logprobs[where]}",
            False,
            error,
        )
    if same < len(pairs):
        problem = f"token {same} is {jenga.tokens[same]}, stock {stock.tokens[same]}"
        (best, _), (second, other) = stock.likeliest[same]
        is_tie = best - second <= tolerance.tie and jenga.tokens[same] == other
        return f"{problem}; stock's two best are {best - second:.1e} apart", is_tie, error
    if len(stock.tokens) != len(jenga.tokens) or stock.finish_reason != jenga.finish_reason:
        return (
            f"{len(jenga.tokens)} tokens ({jenga.finish_reason}), "
            f"stock {len(stock.tokens)} ({stock.finish_reason})",
            False,
            error,
        )
    return None, False, error
