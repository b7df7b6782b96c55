"""The page map on SGLang's HTTP server. Imported by the process that answers HTTP only."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sglang.srt.entrypoints import http_server

from jenga_sglang.hook import AFTER, AROUND, hook
from jenga_sglang.web.key_form import KeyForm
from jenga_sglang.web.routes import add_routes


@hook(
    "sglang.srt.entrypoints.http_server._setup_and_run_http_server",
    (
        *("server_args", "tokenizer_manager", "template_manager", "port_args"),
        *("scheduler_infos", "subprocess_watchdog", "execute_warmup_func", "launch_callback"),
    ),
    AROUND,
    until="a plug-in can contribute a router",
)
def _serve_page(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Adds `/jenga`, `/jenga/stats` and `/jenga/explain` to the application before it starts."""
    add_routes(http_server.app, http_server.get_global_state)
    # Where there are several such processes, they import an application by its path.
    os.environ.setdefault("SGLANG_HTTP_SERVER_APP_PATH", "jenga_sglang.web.worker:app")
    return original(*args, **kwargs)


@hook(
    "sglang.srt.utils.auth.add_api_key_middleware",
    ("app", "api_key", "admin_api_key"),
    AFTER,
    until="SGLang has a way for pages to ask for it",
)
def _offer_key_form(result: None, app: Any, **keys: Any) -> None:
    """A browser cannot send `--api-key` by itself: a refused `/jenga` stays a 401 and carries a
    form that asks for the key."""
    app.add_middleware(KeyForm)
