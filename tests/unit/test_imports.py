"""The direction of imports: core <- adapter <- plug-in, and kernels that know nothing of Jenga."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported_modules(package: str) -> Iterator[tuple[Path, str]]:
    """Yield every absolute import of a package's sources, wherever in a file it stands."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, absolute_name(path, node)


def absolute_name(path: Path, node: ast.ImportFrom) -> str:
    """Return the module an import names; `from ..x import y` counts from the file's package."""
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("jenga_sglang/core", {"torch", "sglang", "flashinfer_ext", "triton"}),
        ("flashinfer_ext", {"jenga_sglang", "sglang"}),
    ],
)
def test_a_package_never_imports_what_lies_above_it(package: str, forbidden: set[str]) -> None:
    imports = list(imported_modules(package))
    assert imports, f"no sources in {package}"
    assert not [(str(p), m) for p, m in imports if m.split(".")[0] in forbidden]


def test_the_core_imports_nothing_of_jenga_but_itself() -> None:
    strays = [
        (str(path), module)
        for path, module in imported_modules("jenga_sglang/core")
        if module.startswith("jenga_sglang") and not module.startswith("jenga_sglang.core")
    ]
    assert not strays


def test_only_the_plug_in_and_the_adapter_import_the_adapter() -> None:
    strays = [
        str(path)
        for package in ("jenga_sglang/core", "jenga_sglang/platform", "jenga_sglang/demo")
        for path, module in imported_modules(package)
        if module.startswith(("jenga_sglang.adapter", "jenga_sglang.plugin"))
    ]
    assert not strays


def test_importing_the_whole_core_loads_neither_torch_nor_sglang() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "jenga_sglang/core").rglob("*.py"))
    ]
    program = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'sglang', 'triton', 'flashinfer'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
