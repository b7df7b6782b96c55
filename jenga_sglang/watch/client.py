"""Asks a Jenga server over HTTP."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

DEFAULT_URL = "http://127.0.0.1:30000"
KEY_VARIABLE = "JENGA_API_KEY"
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """``url`` of the server, and the key that it was started with, if any."""

    url: str
    api_key: str | None = None

    def stats(self) -> dict[str, Any]:
        return self._get("stats", "groups")

    def explain(self, prompt_tokens: int, max_new_tokens: int) -> dict[str, Any]:
        asked = f"explain?prompt_tokens={prompt_tokens}&max_new_tokens={max_new_tokens}"
        return self._get(asked, "answer")

    def _get(self, path: str, field: str) -> dict[str, Any]:
        """The JSON answer of ``/jenga/<path>``, which has ``field``. Raises ``OSError`` with a
        line for the user."""
        request = urllib.request.Request(f"{self.url.rstrip('/')}/jenga/{path}")
        if self.api_key:
            request.add_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
                answer: dict[str, Any] = json.load(reply)
            if not isinstance(answer, dict) or field not in answer:
                raise ValueError(f"its reply has no {field!r}")
            return answer
        except urllib.error.HTTPError as error:
            raise OSError(f"{self.url}: {_meaning(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise OSError(f"{self.url}: no server answers ({reason})") from error
        except ValueError as error:
            raise OSError(f"{self.url}: what answers is no SGLang server ({error})") from error


def _meaning(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"wants its API key: give --api-key or set {KEY_VARIABLE}"
    if error.code == 404:
        return "has no /jenga; was it started with --memory-backend jenga?"
    return f"{error.code} {error.read().decode(errors='replace')[:300]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", default=DEFAULT_URL, help=f"default {DEFAULT_URL}")
    parser.add_argument(
        "--api-key", default=os.environ.get(KEY_VARIABLE), help=f"default: ${KEY_VARIABLE}"
    )


def server_of(arguments: argparse.Namespace) -> Server:
    url = arguments.url
    return Server(url if "://" in url else f"http://{url}", arguments.api_key)
