"""Questions that the HTTP process asks the scheduler, as ids of SGLang's internal-state request.

That request carries nothing else from one process to the other.
"""

from __future__ import annotations

STATS = "jenga stats"
_EXPLAIN = "jenga explain"


def is_question(request_id: str | None) -> bool:
    return request_id is not None and request_id.startswith("jenga ")


def explain(prompt_tokens: int, max_new_tokens: int) -> str:
    """Would a prompt of this length be admitted now?"""
    return f"{_EXPLAIN} {prompt_tokens} {max_new_tokens}"


def parse_explain(question: str) -> tuple[int, int]:
    """(prompt tokens, most new tokens). Raises ``ValueError`` for any other question."""
    numbers = question.removeprefix(_EXPLAIN).split()
    if not question.startswith(_EXPLAIN) or len(numbers) != 2:
        raise ValueError(f"not a question about a prompt: {question!r}")
    return int(numbers[0]), int(numbers[1])
