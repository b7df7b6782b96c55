"""Tree of thought: propose steps, judge each, go on from the best, and look back at the end."""

from __future__ import annotations

from typing import Any

import sglang as sgl

PROBLEM = (
    "Ten window layers need 5,120 bytes a token and the last 64 tokens; two full layers need 1,024 "
    "bytes a token and all of them. How many bytes does a request of 8,192 tokens hold?"
)
WIDTH, DEPTH = 3, 2
JUDGEMENTS = ("hopeless", "possible", "good")


@sgl.function
def tree_of_thought(s: Any, problem: str) -> None:
    s += "Solve this step by step.\n" + problem + "\n"
    for depth in range(DEPTH):
        branches = s.fork(WIDTH)
        for number, branch in enumerate(branches):
            branch += f"Step {depth + 1}, idea {number + 1}: "
            branch += sgl.gen("thought", max_tokens=32, stop="\n", temperature=0)
            branch += "\nThis idea is " + sgl.select("judgement", choices=list(JUDGEMENTS))
        best = max(branches, key=lambda branch: JUDGEMENTS.index(branch["judgement"]))
        s += f"Step {depth + 1}: " + best["thought"] + "\n"
    s += "So the answer is " + sgl.gen(
        "answer", regex="[1-9][0-9]{2,7}", max_tokens=9, temperature=0
    )


def run() -> Any:
    return tree_of_thought.run(problem=PROBLEM)
