"""Servers that are forked from a process which has imported SGLang, and fork theirs from there.

A user's server has each of its processes import SGLang, which takes ten seconds of a core apiece.
Run as a program, this starts one server for each line of JSON that it reads, ``[flags, environment,
path of the log]``, and prints its process id.
"""

import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from functools import partial
from typing import Any

# What every server imports sooner or later.
PRELOADED = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    "jenga_sglang.adapter.hooks",
)


def fork_instead(set_start_method: Any, method: str, force: bool = False) -> None:
    set_start_method("fork", force=force)


def serve(flags: list[str], environment: dict[str, str], log_path: str) -> None:
    """Be `python -m sglang.launch_server` in a process group of its own, and end with it."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(descriptor, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = flags
    status = 0
    try:
        runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        print(ended, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Start servers until there is nothing more to read."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for one that has ended
    multiprocessing.set_start_method = partial(fork_instead, multiprocessing.set_start_method)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # nobody's garbage, and takes long to go through
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            serve(*json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
