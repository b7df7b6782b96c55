"""The example programs are whole: every one is in the table, and reads text that is here."""

from pathlib import Path

import jsonschema

from examples.agent import TOOLS
from examples.document import ROOT, licence, readme
from examples.extract_json import SCHEMA
from examples.programs import PROGRAMS


def test_every_program_is_listed_in_the_readme_and_only_those() -> None:
    folder = Path(ROOT) / "examples"
    rows = [
        line.split("`")[1]
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    assert rows == list(PROGRAMS)
    modules = {path.stem for path in folder.glob("*.py")}
    assert set(PROGRAMS) <= modules


def test_the_text_is_real_and_whole_paragraphs() -> None:
    assert "Apache License" in licence() and len(licence()) > 2000
    assert "Jenga" in readme()
    assert (ROOT / "LICENSE").read_text().strip().startswith(licence())


def test_the_agents_tools_work() -> None:
    assert "patent" in TOOLS["search"]("patent").lower()
    assert TOOLS["search"]("xyzzy") == "nothing found"
    assert TOOLS["count_letters"]("letters") == "7"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
