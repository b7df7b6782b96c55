"""tests/server/README.md says of each of SGLang's test kits whether it runs here."""

import pkgutil
import re
from pathlib import Path

from sglang.test import kits

README = Path(__file__).parents[1] / "server" / "README.md"
TEST = README.parent / "test_kits.py"


def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", README.read_text(), re.MULTILINE))


def test_every_kit_has_a_row() -> None:
    assert sorted(rows()) == sorted(module.name for module in pkgutil.iter_modules(kits.__path__))


def test_the_kits_that_run_are_those_that_are_imported() -> None:
    runs = {kit for kit, here in rows().items() if not here.startswith("does not apply")}
    assert runs == set(re.findall(r"^    (\w+),$", TEST.read_text(), re.MULTILINE))
