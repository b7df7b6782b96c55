"""The plug-in: what SGLang's loader calls in every process.

SGLang's loader logs an exception and goes on, which would leave the stock pools running behind
the flag. So a start with the flag ends with one line wherever the hooks do not fit; a start
without it never does.

Imports nothing of SGLang before its version is known to be one that this package is made for.

Without ``--memory-backend jenga`` only the command line knows of this package; on a machine where
SGLang finds no platform of its own, so does `jenga_sglang.platform` (its README says what it sets).
"""

from __future__ import annotations

import logging
import multiprocessing
import sys

from jenga_sglang import flags, models, versions
from jenga_sglang.refusal import refuse

logger = logging.getLogger(__name__)


def register() -> None:
    """Entry point of `sglang.srt.plugins`: make `--memory-backend jenga` known, through SGLang's
    registry where it has one, and hook the rest in the processes of a server started with it.

    Where that cannot be, SGLang is left as it is, with one line in the log. Raises ``SystemExit``
    with that line in a start that asks for Jenga.
    """
    if why := _why_not():
        _stand_aside(why)
        return
    _make_known()
    models.register_configs()
    if flags.is_active():
        from jenga_sglang.activation import activate

        activate()


def _why_not() -> str | None:
    """Why this SGLang cannot have the flag, or None."""
    if not versions.is_supported(versions.installed_sglang()):
        return f"is made for SGLang {versions.SUPPORTED_SGLANG}; install one of these"
    from jenga_sglang.command_line import command_line_problems
    from jenga_sglang.registry import registry

    problems = [] if registry() else command_line_problems()
    if not problems:
        return None
    return f"does not fit: {'; '.join(problems)}. Reinstall sglang{versions.SUPPORTED_SGLANG}"


def _stand_aside(why: str) -> None:
    line = refuse(
        f"SGLang {versions.installed_sglang()}", f"{flags.FLAG} jenga {why}, or leave the flag out"
    )
    if flags.is_active() or flags.is_asked_for(sys.argv):
        raise line
    # The processes that a server spawns load plug-ins, too.
    if multiprocessing.parent_process() is None:
        logger.warning("%s", line)


def _make_known() -> None:
    from jenga_sglang.registry import registry

    if found := registry():
        from jenga_sglang.memory_backend import JENGA

        found.register_memory_backend(flags.RADIX_CACHE_BACKEND, JENGA)
        return
    from jenga_sglang.command_line import command_line_hooks, hook_engine
    from jenga_sglang.hook import install

    install(command_line_hooks())
    hook_engine()
