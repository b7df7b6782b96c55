"""The plug-in: what SGLang's loader calls in every process, and what it hooks of the command line.

SGLang's loader logs an exception and goes on, which would leave the stock pools running behind
the flag. So every target is resolved and its parameters compared first, every hook is seen to
have taken hold, and whatever is wrong ends the process with one line (`hook.py`).

Without ``--memory-backend jenga`` only the command line knows of this package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from jenga_sglang import flags, versions
from jenga_sglang.activation import activate
from jenga_sglang.hook import AFTER, AROUND, Hook, always, hook, hooks_of, install
from jenga_sglang.memory_backend import JENGA
from jenga_sglang.refusal import refuse
from jenga_sglang.registry import registry

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
UNTIL = "SGLang has a registry of memory backends"


def register() -> None:
    """Entry point of `sglang.srt.plugins`: make `--memory-backend jenga` known, through SGLang's
    registry where it has one, and hook the rest in the processes of a server started with it."""
    check_version(versions.installed_sglang())
    if found := registry():
        found.register_memory_backend(flags.RADIX_CACHE_BACKEND, JENGA)
    else:
        install(command_line_hooks())
        _hook_engine()
    if flags.is_active():
        activate()


def check_version(installed: str) -> None:
    """Raise ``SystemExit`` unless the hooks were made for this SGLang."""
    if not versions.is_supported(installed):
        raise refuse(
            f"SGLang {installed}",
            f"the hooks are made for SGLang {versions.SUPPORTED_SGLANG}; install that version, or "
            "uninstall jenga-sglang",
        )


# -- the command line and the Python API ----------------------------------------------------------


def command_line_hooks() -> list[Hook]:
    """What makes the flag known, in a process of any server."""
    return hooks_of(sys.modules[__name__])


@hook(f"{SERVER_ARGS}.add_cli_args", ("parser",), AFTER, when=always, until=UNTIL)
def _add_flag(result: Any, parser: Any) -> None:
    """Adds `--memory-backend`."""
    flags.add_flag(parser)


@hook(f"{SERVER_ARGS}.from_cli_args", ("args",), AROUND, when=always, until=UNTIL)
def _from_cli_args(original: Callable[..., Any], cls: type, args: Any) -> Any:
    """Turns the flag into `radix_cache_backend=jenga`, which every process sees, and refuses
    combinations."""
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
        raise refuse(
            "sglang Engine.server_args_class",
            "another plug-in has replaced it; uninstall one of the two",
        )
    Engine.server_args_class = staticmethod(_server_args)


def _server_args(**values: Any) -> Any:
    from sglang.srt.server_args import ServerArgs

    if flags.apply_flag(values):
        activate()
    return ServerArgs(**values)
