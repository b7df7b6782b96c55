"""A browser cannot send a bearer token by itself: give it a form to ask for one."""

from __future__ import annotations

from typing import Any

from jenga_sglang.web.page import page

PATH = "/jenga"


class KeyForm:
    """ASGI middleware: a refused `GET /jenga` keeps its status 401 and gets the page as its body.

    The page is a constant without any data; it asks for the key and sends it along with every
    question that it asks.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        refused = False

        async def replace_body(message: Any) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] == 401
                if refused:
                    await send({**message, "headers": _HEADERS})
                    return
            elif refused and message["type"] == "http.response.body":
                if not message.get("more_body", False):
                    await send({"type": "http.response.body", "body": page().encode()})
                return
            await send(message)

        await self.app(scope, receive, replace_body)


_HEADERS = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
