"""The tables of `patches/README.md`, from the hooks' records:
`python -m jenga_sglang.hook_ledger` prints them."""

from __future__ import annotations

from collections.abc import Iterable

from jenga_sglang.adapter.hooks import http_hooks, runtime_hooks, transfer_hooks
from jenga_sglang.command_line import command_line_hooks
from jenga_sglang.hook import Hook

PREFIX = "sglang.srt."
HEAD = "| target | kind | why | can go when |\n|---|---|---|---|"


def tables() -> list[str]:
    """Every process's hooks, and those of the process that answers HTTP."""
    return [
        _table([*command_line_hooks(), *runtime_hooks(), *transfer_hooks()]),
        _table(http_hooks()),
    ]


def _table(hooks: Iterable[Hook]) -> str:
    return "\n".join([HEAD, *map(_row, hooks)])


def _row(hook: Hook) -> str:
    target = hook.target.removeprefix(PREFIX)
    reason = hook.reason.removesuffix(".")
    return f"| `{target}` | {hook.kind.value} | {reason} | {hook.until} |"


if __name__ == "__main__":
    print("\n\n".join(tables()))
