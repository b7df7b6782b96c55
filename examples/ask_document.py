"""Several questions about one document at once: fork, gen with a regular expression, join."""

from __future__ import annotations

from typing import Any

import sglang as sgl

from examples.document import licence

QUESTIONS = (
    "In which year was this version of the licence published?",
    "How many sections does the excerpt begin?",
    "How many conditions does redistribution have?",
    "How many days of notice does the excerpt ask for?",
)


@sgl.function
def ask_document(s: Any, document: str, questions: tuple[str, ...]) -> None:
    s += "Read this licence.\n\n" + document + "\n\n"
    forks = s.fork(len(questions))
    for fork, question in zip(forks, questions, strict=True):
        fork += "Question: " + question + "\nAnswer with a number: "
        fork += sgl.gen("answer", regex=r"[1-9][0-9]{0,3}", max_tokens=5, temperature=0)
    forks.join()
    for question, fork in zip(questions, forks, strict=True):
        s += question + " " + fork["answer"] + "\n"
    s += "In one line: " + sgl.gen("summary", max_tokens=32, stop="\n", temperature=0)


def run() -> Any:
    return ask_document.run(document=licence(), questions=QUESTIONS)
