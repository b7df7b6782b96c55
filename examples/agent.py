"""An agent that looks things up: it picks a tool, writes an argument, and reads what came back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sglang as sgl

from examples.document import licence, readme

MAX_STEPS = 4
TASK = "Find out whether the licence grants a patent, and how long the answer is in letters."


def search(word: str) -> str:
    """The first sentence of the documents that has the word."""
    sentences = re.split(r"(?<=\.)\s+", f"{licence(6000)} {readme()}")
    found = (" ".join(s.split()) for s in sentences if word.lower() in s.lower())
    return next(found, "nothing found")[:200]


def count_letters(word: str) -> str:
    return str(len(word))


TOOLS: dict[str, Callable[[str], str]] = {"search": search, "count_letters": count_letters}


@sgl.function
def agent(s: Any, task: str) -> None:
    s += "Tools: search(word), count_letters(word), finish(word).\nTask: " + task + "\n"
    for step in range(MAX_STEPS):
        tool, word = f"tool_{step}", f"word_{step}"
        s += "Tool: " + sgl.select(tool, choices=[*TOOLS, "finish"])
        s += "\nWord: " + sgl.gen(word, regex="[a-z]{3,12}", max_tokens=13, temperature=0)
        if s[tool] == "finish":
            return
        s += "\nIt says: " + TOOLS[s[tool]](s[word]) + "\n"


def run() -> Any:
    return agent.run(task=TASK)
