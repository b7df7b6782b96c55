"""One word, one meaning: the glossary and the code agree, and names say what functions do."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from jenga_sglang.core.running import Running

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs/architecture.md").read_text().split("## Words")[1].split("\n## ")[0]
CORE = [ast.parse(path.read_text()) for path in sorted((ROOT / "jenga_sglang/core").rglob("*.py"))]
OUTSIDE = [
    path
    for top in ("jenga_sglang", "benchmarks")
    for path in sorted((ROOT / top).rglob("*.py"))
    if "core" not in path.relative_to(ROOT).parts
]

QUESTION = re.compile(r"_?(can|is|are|has|holds|fits|may|needs)_")


def functions() -> Iterator[ast.FunctionDef]:
    for tree in CORE:
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def stored(node: ast.AST) -> Iterator[ast.Attribute]:
    """Attributes that are assigned to or deleted, also by way of their items."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute | ast.Subscript) and not isinstance(child.ctx, ast.Load):
            target: ast.expr = child
            while isinstance(target, ast.Subscript):
                target = target.value
            if isinstance(target, ast.Attribute):
                yield target


def resolves(name: str) -> bool:
    """Whether ``module.Class.attribute`` names something of the core; a field will do."""
    module, *attributes = name.split(".")
    found: object = import_module(f"jenga_sglang.core.{module}")
    for attribute in attributes:
        if attribute in getattr(found, "__dataclass_fields__", {}):
            return True
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True


def names(node: ast.AST) -> set[str]:
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def test_every_word_of_the_glossary_is_in_the_code() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `([\w.]+)` \|$", GLOSSARY, re.M)
    assert len(rows) == GLOSSARY.count("\n| ") - 1 > 10, "a row without its name in the code"
    assert not [word for word, name in rows if not resolves(name)]


def test_a_question_changes_nothing() -> None:
    asking = [f for f in functions() if QUESTION.match(f.name)]
    assert len(asking) > 20
    assert not [(f.name, a.attr) for f in asking for a in stored(f)]


def test_what_is_published_or_kept_of_a_state_is_no_checkpoint() -> None:
    """SGLang's word means both, and a file of weights besides."""
    used = set().union(*map(names, CORE)) | {function.name for function in functions()}
    assert not [name for name in used if "checkpoint" in name.lower()]


def test_nobody_outside_the_core_writes_what_a_request_holds() -> None:
    fields = {field.name for field in dataclasses.fields(Running)}
    wrong = [
        (str(path.relative_to(ROOT)), target.lineno, target.attr)
        for path in OUTSIDE
        for target in stored(ast.parse(path.read_text()))
        if target.attr in fields and names(target.value) & {"pin", "running", "receipt"}
    ]
    assert not wrong


def test_nobody_outside_the_core_writes_its_books() -> None:
    books = {"memory", "tree", "large", "lru", "needs", "evictor", "holding", "snapshots"}
    wrong = [
        (str(path.relative_to(ROOT)), target.lineno, target.attr)
        for path in OUTSIDE
        for target in stored(ast.parse(path.read_text()))
        if "manager" in names(target.value) and {target.attr, *names(target.value)} & books
    ]
    assert not wrong
