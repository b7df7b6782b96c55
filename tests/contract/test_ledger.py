"""`patches/README.md` lists exactly the hooks that the code applies."""

import re
from pathlib import Path

from jenga_sglang.adapter.hooks import http_hooks, runtime_hooks
from jenga_sglang.plugin import _command_line_hooks

LEDGER = Path(__file__).parents[2] / "patches" / "README.md"


def test_the_ledger_has_one_row_per_hook() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (after|around) \|", LEDGER.read_text(), re.MULTILINE)
    hooks = [*_command_line_hooks(), *runtime_hooks(), *http_hooks()]
    assert sorted(rows) == sorted(
        (hook.target.removeprefix("sglang.srt."), hook.kind.value) for hook in hooks
    )
