"""The plug-in: which functions of SGLang are hooked, checked before any of them is.

SGLang's loader logs an exception and goes on, which would leave the stock pools running behind
the flag. So every target is resolved and its parameters compared first, every hook is seen to
have taken hold, and whatever is wrong ends the process with one line.

Without ``--memory-backend jenga`` only the command line knows of this package.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from packaging.specifiers import SpecifierSet
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from jenga_sglang import flags
from jenga_sglang.memory_backend import JENGA, registry

SUPPORTED_SGLANG = SpecifierSet("==0.5.23")
HTTP_SERVER = "sglang.srt.entrypoints.http_server"


@dataclass(frozen=True)
class Hook:
    """One hooked function: its dotted path, its parameters as they were when this was written."""

    target: str
    parameters: tuple[str, ...]
    run: Callable[..., Any]
    kind: HookType

    def problem(self) -> str | None:
        """Why this hook cannot be applied here, or None."""
        try:
            found = tuple(inspect.signature(self.resolve()).parameters)
        except (ImportError, AttributeError) as error:
            return f"{self.target} is missing ({error})"
        if found != self.parameters:
            return f"{self.target} takes {found}, expected {self.parameters}"
        return None

    def resolve(self) -> Any:
        return pkgutil.resolve_name(self.target)


def register() -> None:
    """Entry point of `sglang.srt.plugins`: make `--memory-backend jenga` known, through SGLang's
    registry where it has one, and hook the rest in the processes of a server started with it."""
    check_version(version("sglang"))
    if found := registry():
        found.register_memory_backend(flags.RADIX_CACHE_BACKEND, JENGA)
    else:
        install(_command_line_hooks())
        _hook_engine()
    if flags.is_active():
        activate()


def check_version(installed: str) -> None:
    """Raise ``SystemExit`` unless the hooks were made for this SGLang."""
    if not SUPPORTED_SGLANG.contains(installed, prereleases=True):
        raise flags.refuse(
            f"SGLang {installed}",
            f"the hooks are made for SGLang {SUPPORTED_SGLANG}; install that version, or uninstall "
            "jenga-sglang",
        )


def activate(*, serves_http: bool = False) -> None:
    """Hook this process, and have every process that it spawns do the same.

    ``serves_http``: this process is going to run SGLang's HTTP server.
    """
    os.environ[flags.ACTIVE_VARIABLE] = "1"
    # Only now: these modules import the scheduler and the model runner.
    from jenga_sglang.adapter import hooks

    hooks.register_backends()
    install(hooks.runtime_hooks())
    if serves_http or HTTP_SERVER in sys.modules:
        install(hooks.http_hooks())


def install(hooks: Sequence[Hook]) -> None:
    """Apply ``hooks``, all or none. Raises ``SystemExit`` when one does not fit or did not take."""
    hooks = [hook for hook in hooks if hook.target not in _installed]
    problems = [problem for hook in hooks if (problem := hook.problem())]
    if problems:
        raise flags.refuse(
            f"SGLang {version('sglang')}",
            f"{'; '.join(problems)}. Reinstall sglang{SUPPORTED_SGLANG}, or uninstall jenga-sglang",
        )
    before = [hook.resolve() for hook in hooks]
    for hook in hooks:
        HookRegistry.register(hook.target, hook.run, hook.kind)
    HookRegistry.apply_hooks()
    for hook, original in zip(hooks, before, strict=True):
        if hook.resolve() is original:
            raise flags.refuse(hook.target, "the hook did not take hold; see the log above")
        _installed.add(hook.target)


_installed: set[str] = set()


# -- the command line and the Python API ----------------------------------------------------------


def _command_line_hooks() -> list[Hook]:
    server_args = "sglang.srt.server_args.ServerArgs"
    return [
        Hook(f"{server_args}.add_cli_args", ("parser",), _add_flag, HookType.AFTER),
        Hook(f"{server_args}.from_cli_args", ("args",), _from_cli_args, HookType.AROUND),
    ]


def _add_flag(result: Any, parser: Any) -> None:
    flags.add_flag(parser)


def _from_cli_args(original: Callable[..., Any], cls: type, args: Any) -> Any:
    if flags.apply_flag(vars(args)):
        activate(serves_http=True)
    return original(cls, args)


def _hook_engine() -> None:
    """`sgl.Engine(memory_backend=…)`: the engine builds its ServerArgs through a class attribute.

    Not the registry's business: it only replaces classes by classes.
    """
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.server_args import ServerArgs

    if Engine.server_args_class not in (ServerArgs, _server_args):
        raise flags.refuse(
            "sglang Engine.server_args_class",
            "another plug-in has replaced it; uninstall one of the two",
        )
    Engine.server_args_class = staticmethod(_server_args)


def _server_args(**values: Any) -> Any:
    from sglang.srt.server_args import ServerArgs

    if flags.apply_flag(values):
        activate()
    return ServerArgs(**values)
