"""`--memory-backend` on SGLang's command line and in its Python API, where SGLang has no registry
of memory backends to add it through."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from jenga_sglang import flags
from jenga_sglang.activation import activate
from jenga_sglang.hook import AFTER, AROUND, Hook, always, hook, hooks_of, problems_of

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
UNTIL = "SGLang has a registry of memory backends"


def command_line_hooks() -> list[Hook]:
    """What makes the flag known, in a process of any server."""
    return hooks_of(sys.modules[__name__])


def command_line_problems() -> list[str]:
    """Why the flag cannot be added to this SGLang; empty where it can."""
    return problems_of(command_line_hooks()) or _engine_problems()


@hook(f"{SERVER_ARGS}.add_cli_args", ("parser",), AFTER, when=always, until=UNTIL)
def _add_flag(result: Any, parser: Any) -> None:
    """Adds `--memory-backend`, and the attention backend that comes with it to the names that
    `--attention-backend` takes."""
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES

    flags.add_flag(parser)
    if flags.TORCH_BACKEND not in ATTENTION_BACKEND_CHOICES:
        ATTENTION_BACKEND_CHOICES.append(flags.TORCH_BACKEND)


@hook(f"{SERVER_ARGS}.from_cli_args", ("args",), AROUND, when=always, until=UNTIL)
def _from_cli_args(original: Callable[..., Any], cls: type, args: Any) -> Any:
    """Turns the flag into `radix_cache_backend=jenga`, which every process sees, and refuses
    combinations."""
    if flags.apply_flag(vars(args)):
        activate(serves_http=True)
    return original(cls, args)


def hook_engine() -> None:
    """`sgl.Engine(memory_backend=…)`: the engine builds its ServerArgs through a class attribute.

    Not SGLang's hooks' business: they only replace classes by classes.
    """
    from sglang.srt.entrypoints.engine import Engine

    Engine.server_args_class = staticmethod(_server_args)


def _engine_problems() -> list[str]:
    try:
        from sglang.srt.entrypoints.engine import Engine
        from sglang.srt.server_args import ServerArgs

        found = Engine.server_args_class
    except (ImportError, AttributeError) as error:
        return [f"sglang.srt.entrypoints.engine.Engine.server_args_class is missing ({error})"]
    if found in (ServerArgs, _server_args):
        return []
    return ["another plug-in has replaced sglang.srt.entrypoints.engine.Engine.server_args_class"]


def _server_args(**values: Any) -> Any:
    from sglang.srt.server_args import ServerArgs

    if flags.apply_flag(values):
        activate()
    return ServerArgs(**values)
