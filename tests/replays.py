"""Runs `python -m benchmarks.replay` again and again, and imports SGLang once.

Reads a JSON list of arguments a line; each is run in a forked process, with its output in the file
that the line's first entry names. Writes the exit code.
"""

import gc
import json
import os
import sys
from importlib import import_module

from benchmarks.replay.cli import main
from benchmarks.replay.engine import prepare_process

prepare_process()
for name in ("sglang.srt.entrypoints.engine", "sglang.srt.managers.scheduler"):
    import_module(name)
gc.freeze()  # nobody's garbage, and takes long to go through
for line in sys.stdin:
    log, *arguments = json.loads(line)
    if (child := os.fork()) == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.exit(main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
