"""`python -m sglang.launch_server`, but every process is forked from the first.

A user's server has each of them import SGLang, which takes ten seconds of a core apiece.
"""

import multiprocessing
import runpy
from functools import partial
from typing import Any


def fork_instead(set_start_method: Any, method: str, force: bool = False) -> None:
    set_start_method("fork", force=force)


multiprocessing.set_start_method = partial(fork_instead, multiprocessing.set_start_method)
runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
