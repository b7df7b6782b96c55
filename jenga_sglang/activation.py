"""Turns this process, and those that it spawns, into a Jenga server's."""

from __future__ import annotations

import sys

from jenga_sglang import settings
from jenga_sglang.hook import install

HTTP_SERVER = "sglang.srt.entrypoints.http_server"


def activate(*, serves_http: bool = False) -> None:
    """Hook this process, and have every process that it spawns do the same.

    ``serves_http``: this process is going to run SGLang's HTTP server.
    """
    settings.hand_down(sglang_active="1")
    # Only now: these modules import the scheduler and the model runner.
    from jenga_sglang.adapter import hooks

    hooks.register_backends()
    install(hooks.runtime_hooks())
    if serves_http or HTTP_SERVER in sys.modules:
        install(hooks.http_hooks())
