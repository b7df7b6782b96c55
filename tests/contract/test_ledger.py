"""`patches/README.md` lists exactly the hooks that the code applies, with the code's reasons."""

import re
from pathlib import Path

from jenga_sglang import hook_ledger

LEDGER = Path(__file__).parents[2] / "patches" / "README.md"


def test_the_ledger_is_what_the_hooks_say_of_themselves() -> None:
    tables = re.findall(r"^\| target \|.*\n(?:\|.*\n)+", LEDGER.read_text(), re.MULTILINE)
    printed = "`python -m jenga_sglang.hook_ledger` prints what belongs there"
    assert [table.rstrip() for table in tables] == hook_ledger.tables(), printed
