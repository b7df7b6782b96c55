"""Classification by example: one long prompt of examples that all questions share, and select."""

from __future__ import annotations

from typing import Any

import sglang as sgl

LABELS = ("bug", "question", "wish")
EXAMPLES = (
    ("The server ends with an assertion when two long prompts arrive together.", "bug"),
    ("Is there a way to see which request waits for memory?", "question"),
    ("It would be good to have the page map in a terminal as well.", "wish"),
    ("The hit rate falls to zero after every flush and never recovers.", "bug"),
    ("Does the window group keep pages of a finished request?", "question"),
)
REPORTS = (
    "Output differs from one run to the next with temperature zero.",
    "Could admission explain itself in the log?",
    "How large is a large page on a model with four groups?",
    "The gauge shows more bytes than the pool has.",
)


@sgl.function
def classify(s: Any, report: str) -> None:
    s += "Sort reports about a server.\n\n"
    for text, label in EXAMPLES:
        s += f"Report: {text}\nKind: {label}\n\n"
    s += f"Report: {report}\nKind: " + sgl.select("kind", choices=list(LABELS))


def run() -> Any:
    return classify.run_batch([{"report": report} for report in REPORTS])
