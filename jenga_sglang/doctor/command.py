"""The command: what was found, a line each, and one sentence at the end."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from jenga_sglang.doctor.checks import Check, Diagnosis, HookCheck, diagnose

CAN, CANNOT = 0, 1
GOOD, BAD = "[green]✓[/green]", "[red]✗[/red]"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say whether --memory-backend jenga can start in this environment, and why not",
        description="Looks at the installed SGLang, at what its plug-in loader finds, at the "
        "device, and at every function of SGLang that a Jenga server hooks. Starts nothing; "
        "importing SGLang takes seconds. Exit status: 0 when a start would find all it needs, 1 "
        "when not.",
    )
    parser.add_argument(
        "--brief", action="store_true", help="of the functions, list only those that do not fit"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis and return the exit status."""
    with warnings.catch_warnings(), Console(stderr=True).status("Importing SGLang …"):
        warnings.simplefilter("ignore")
        diagnosis = diagnose()
    show(diagnosis, Console(highlight=False), brief=arguments.brief)
    return CAN if diagnosis.can_start else CANNOT


def show(diagnosis: Diagnosis, console: Console, *, brief: bool) -> None:
    """Print ``diagnosis``; ``brief`` leaves out the hooks that fit."""
    hooks = [hook for hook in diagnosis.hooks if not (brief and hook.fits)]
    checks = [*diagnosis.checks, *_summary(diagnosis.hooks)]
    for section in (_packages(diagnosis.packages), _checks(checks), _hooks(hooks)):
        lines = list(section)
        if lines:
            # Names are for searching and copying: a terminal may wrap them, this does not.
            console.print("\n".join([*lines, ""]), soft_wrap=True)
    console.print(verdict(diagnosis), soft_wrap=True)


def verdict(diagnosis: Diagnosis) -> str:
    """The last line."""
    if diagnosis.can_start:
        return f"{GOOD} `--memory-backend jenga` finds all it needs here."
    return f"{BAD} `--memory-backend jenga` cannot start here. Without it SGLang runs as it is."


def _packages(packages: dict[str, str | None]) -> Iterator[str]:
    for name, found in packages.items():
        yield f"  {name:<18} {found or 'not installed'}"


def _checks(checks: Sequence[Check]) -> Iterator[str]:
    for check in checks:
        yield f"{_mark(check.is_good)} {check.name:<18} {escape(check.found)}"
        if check.remedy:
            yield f"  {'':<18} → {escape(check.remedy)}"


def _summary(hooks: Sequence[HookCheck]) -> list[Check]:
    """All hooks in one line, where there are any to look at."""
    if not hooks:
        return []
    fitting = sum(hook.fits for hook in hooks)
    found = f"{fitting} of {len(hooks)} functions of SGLang fit"
    return [Check("hooks", found, None if fitting == len(hooks) else "see below")]


def _hooks(hooks: Sequence[HookCheck]) -> Iterator[str]:
    """A row a function; ``parameters`` are those of the versions beside the mark."""
    if hooks:
        yield "  found  parameters       function, below sglang.srt"
    for hook in hooks:
        parameters = f"{_mark(hook.fits)} {hook.record:<13}"
        target = hook.target.removeprefix("sglang.srt.")
        yield f"  {_mark(hook.is_found)}      {parameters}  {target}"
    for hook in hooks:
        if hook.problem:
            yield f"{BAD} {escape(hook.problem)}"


def _mark(good: bool) -> str:
    return GOOD if good else BAD
