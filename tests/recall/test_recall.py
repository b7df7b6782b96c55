"""A trained model names values it read many windows ago: from stock, from Jenga, and no longer
once a page-table entry is wrong."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from e2e.answers import Answer, compare
from e2e.engine import Job, Report, run_jobs
from e2e.stream import Request
from recall.model import MAX_LENGTH, WINDOW, make_recall_model
from recall.task import PAIR_TOKENS, Document, make_document
from recall.wrong_entry import WRONG_PAGE, misread_one_page

PAGE_SIZE = 16
DOCUMENT_TOKENS = (380, 500)
NUM_DOCUMENTS = 8
NUM_PAIRS = 60
# Three documents' worth, so that the others' prefixes are evicted between their questions.
POOL_TOKENS = 1536
NUM_QUESTIONS = 160
POISON = {"JENGA_POISON_FREED": "1"}
KEPT_TOKENS = 256


@pytest.fixture(scope="module")
def recall_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recall_model(tmp_path_factory.mktemp("model") / "recall")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(7)
    return [
        make_document(rng, NUM_PAIRS, rng.randint(*DOCUMENT_TOKENS)) for _ in range(NUM_DOCUMENTS)
    ]


@pytest.fixture(scope="module")
def questions(documents: list[Document]) -> list[tuple[Document, int]]:
    """(document, key): keys at least two windows before the question, documents interleaved.

    One question in four is about the page that the faulty server misreads.
    """
    rng = random.Random(8)
    asked = []
    for number in range(NUM_QUESTIONS):
        document = documents[number % NUM_DOCUMENTS]
        far = document.keys_before(len(document.tokens) - 2 * WINDOW)
        on_page = [key for key in far if is_on_wrong_page(document, key)]
        asked.append((document, rng.choice(on_page if rng.random() < 0.25 else far)))
    rng.shuffle(asked)
    return asked


@pytest.fixture(scope="module")
def reports(
    recall_model: Path,
    questions: list[tuple[Document, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Report]:
    """What stock, Jenga, Jenga with one wrong entry, and Jenga whose full layers keep a few first
    tokens and a window answer; all run side by side."""
    jenga = {"memory_backend": "jenga"}
    backends: dict[str, tuple[dict[str, str], Callable[[Any], None] | None]] = {
        "stock": ({"memory_backend": "default"}, None),
        "jenga": (jenga, None),
        "wrong entry": (jenga, misread_one_page),
        "keeps less": (jenga | {"jenga_keep": f"4+{KEPT_TOKENS}"}, None),
    }
    jobs = {
        name: Job(
            server_flags(recall_model) | flags,
            [Request(document.question(key), 3) for document, key in questions],
            env=POISON,
            before=before,
        )
        for name, (flags, before) in backends.items()
    }
    return run_jobs(jobs, tmp_path_factory.mktemp("recall"))


def server_flags(model: Path) -> dict[str, Any]:
    return {
        "model_path": str(model),
        "dtype": "float32",
        "page_size": PAGE_SIZE,
        "chunked_prefill_size": 128,
        "max_total_tokens": POOL_TOKENS,
        "context_length": MAX_LENGTH,
    }


def accuracy(questions: Sequence[tuple[Document, int]], answers: Sequence[Answer]) -> float:
    """The share of questions whose three tokens are all right."""
    right = sum(
        answer.tokens == document.answers[key]
        for (document, key), answer in zip(questions, answers, strict=True)
    )
    return right / len(questions)


def test_both_memories_recall_alike(
    questions: list[tuple[Document, int]], reports: dict[str, Report]
) -> None:
    stock, jenga = reports["stock"].answers, reports["jenga"].answers
    result = compare(stock, jenga)
    print(result, accuracy(questions, stock), accuracy(questions, jenga))
    assert accuracy(questions, jenga) > 0.95
    assert accuracy(questions, jenga) == accuracy(questions, stock)
    assert not result.differences, str(result)


def test_prefixes_were_shared_and_evicted(reports: dict[str, Report]) -> None:
    jenga = reports["jenga"]
    assert len(jenga.state["groups"]) == 2
    assert jenga.cached_tokens > 0
    for group in jenga.state["groups"]:
        assert group["evicted_pages"] > 0
        assert group["used_bytes"] == 0


def test_a_wrong_page_table_entry_loses_what_stood_there(
    questions: list[tuple[Document, int]], reports: dict[str, Report]
) -> None:
    answers = reports["wrong entry"].answers
    inside = [is_on_wrong_page(*question) for question in questions]
    lost = [n for n, is_inside in enumerate(inside) if is_inside]
    kept = [n for n, is_inside in enumerate(inside) if not is_inside]
    assert len(lost) >= NUM_QUESTIONS // 5
    on_page = accuracy([questions[n] for n in lost], [answers[n] for n in lost])
    elsewhere = accuracy([questions[n] for n in kept], [answers[n] for n in kept])
    print(f"recall on the misread pages {on_page}, elsewhere {elsewhere}")
    assert on_page < 0.2
    assert elsewhere > 0.8
    assert accuracy(questions, answers) < accuracy(questions, reports["jenga"].answers) - 0.1


def is_on_wrong_page(document: Document, key: int) -> bool:
    """Whether any of the key's pair stands on a page that is misread."""
    first = document.place[key] // PAGE_SIZE
    last = (document.place[key] + PAIR_TOKENS - 1) // PAGE_SIZE
    return WRONG_PAGE in (first, last)


def test_layers_that_keep_less_forget_what_is_beyond(
    questions: list[tuple[Document, int]], reports: dict[str, Report]
) -> None:
    """`--jenga-keep` is for who can bear this: what was read further back than that is gone."""
    report = reports["keeps less"]
    names = {group["name"] for group in report.state["groups"]}
    assert names == {f"window {WINDOW}", f"window {KEPT_TOKENS} + 4 sink"}

    def recalled(is_kept: bool) -> float:
        asked = [
            n
            for n, (document, key) in enumerate(questions)
            if (len(document.tokens) - document.place[key] < KEPT_TOKENS - PAIR_TOKENS) is is_kept
        ]
        assert len(asked) > NUM_QUESTIONS // 5
        return accuracy([questions[n] for n in asked], [report.answers[n] for n in asked])

    near, far = recalled(True), recalled(False)
    print(f"recall of what is kept {near}, of what is not {far}")
    assert near > 0.8 and far < 0.1
