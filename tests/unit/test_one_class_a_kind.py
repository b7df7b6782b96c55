"""A kind of layer is one class: nothing outside `core/dependency.py` asks which kind a group is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from jenga_sglang.core import dependency

ROOT = Path(__file__).parents[2]
KINDS = {
    name
    for name, value in vars(dependency).items()
    if isinstance(value, type) and issubclass(value, dependency.Dependency)
}
# The books list which groups read what an encoder made; all others ask the lists.
MAY_ASK_A_FLAG = {
    f"jenga_sglang/core/{name}.py" for name in ("dependency", "groups", "books/memory")
}
FLAG = "reads_encoder"


def sources() -> dict[str, ast.Module]:
    tops = [ROOT / top for top in ("jenga_sglang", "flashinfer_ext", "benchmarks")]
    paths = sorted(path for top in tops for path in top.rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def names_in(node: ast.AST) -> set[str]:
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def attributes_of(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def questions(tree: ast.AST) -> Iterator[int]:
    """Lines that ask whether something is of some kind: `isinstance`, `issubclass`, a `case`, or
    its type beside a kind's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id in ("isinstance", "issubclass")
            if asks and names_in(node.args[1]) & KINDS:
                yield node.lineno
        elif isinstance(node, ast.MatchClass) and names_in(node.cls) & KINDS:
            yield node.cls.lineno
        elif isinstance(node, ast.Compare):
            names = names_in(node)
            if names & KINDS and names & {"type", "__class__"}:
                yield node.lineno


@pytest.mark.parametrize(
    "question",
    [
        "isinstance(d, SlidingWindow)",
        "isinstance(d, dependency.Full | ChunkedLocal)",
        "issubclass(type(d), (Full, int))",
        "match d:\n    case SlidingWindow(window=w): pass",
        "type(d) is Full",
    ],
)
def test_every_way_to_ask_is_seen(question: str) -> None:
    assert list(questions(ast.parse(question)))


def test_nothing_but_the_kinds_themselves_asks_which_kind_a_group_is() -> None:
    others = {f: tree for f, tree in sources().items() if f != "jenga_sglang/core/dependency.py"}
    assert not [(file, line) for file, tree in others.items() for line in questions(tree)]


def test_only_the_books_ask_who_reads_what_an_encoder_made() -> None:
    asking = {file for file, tree in sources().items() if FLAG in attributes_of(tree)}
    assert asking and asking <= MAY_ASK_A_FLAG
