"""A conversation of several turns: every turn continues the last, so all but the new is cached."""

from __future__ import annotations

from typing import Any

import sglang as sgl

from examples.document import readme

TURNS = (
    "What is this project for?",
    "Which word does it use for the unit that moves between groups?",
    "And what is smaller than that?",
    "Thank you. Say it all again in one sentence.",
)


@sgl.function
def chat(s: Any, document: str, turns: tuple[str, ...]) -> None:
    s += sgl.system("You answer questions about this text.\n\n" + document)
    for number, turn in enumerate(turns):
        s += sgl.user(turn)
        s += sgl.assistant(sgl.gen(f"turn_{number}", max_tokens=40, temperature=0))


def run() -> Any:
    return chat.run(document=readme(), turns=TURNS)
