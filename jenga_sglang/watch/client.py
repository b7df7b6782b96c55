"""Asks a Jenga server over HTTP."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from jenga_sglang import settings

DEFAULT_URL = "http://127.0.0.1:30000"
KEY_VARIABLE = settings.name_of("api_key")
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """``url`` of the server, the key that it was started with, if any, and the data-parallel rank
    to ask about, or None for every one."""

    url: str
    api_key: str | None = None
    dp_rank: int | None = None

    def stats(self) -> list[dict[str, Any]]:
        """What `/jenga/stats` says of each rank."""
        return self._get("stats", {}, "groups")

    def explain(self, prompt_tokens: int, max_new_tokens: int) -> list[dict[str, Any]]:
        """What `/jenga/explain` says of each rank."""
        numbers = {"prompt_tokens": prompt_tokens, "max_new_tokens": max_new_tokens}
        return self._get("explain", numbers, "answer")

    def _get(self, path: str, query: dict[str, int], field: str) -> list[dict[str, Any]]:
        """The JSON answers of ``/jenga/<path>``, which have ``field``. Raises ``OSError`` with a
        line for the user."""
        if self.dp_rank is not None:
            query = query | {"dp_rank": self.dp_rank}
        asked = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        request = urllib.request.Request(f"{self.url.rstrip('/')}/jenga/{asked}")
        if self.api_key:
            request.add_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
                return _ranks(json.load(reply), field)
        except urllib.error.HTTPError as error:
            raise OSError(f"{self.url}: {_meaning(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise OSError(f"{self.url}: no server answers ({reason})") from error
        except ValueError as error:
            raise OSError(f"{self.url}: what answers is no SGLang server ({error})") from error


def _ranks(answer: Any, field: str) -> list[dict[str, Any]]:
    """The answer of every rank. Raises ``ValueError`` where one has no ``field``."""
    ranks = answer.get("ranks", [answer]) if isinstance(answer, dict) else [answer]
    if not all(isinstance(rank, dict) and field in rank for rank in ranks):
        raise ValueError(f"its reply has no {field!r}")
    return list(ranks)


def rank_name(answer: dict[str, Any]) -> str:
    """ "rank 1 of 2", or nothing where there is one only."""
    number = answer.get("data_parallel_ranks", 1)
    return f"rank {answer['dp_rank']} of {number}" if number > 1 else ""


def _meaning(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"wants its API key: give --api-key or set {KEY_VARIABLE}"
    if error.code == 404:
        return "has no /jenga; was it started with --memory-backend jenga?"
    return f"{error.code} {error.read().decode(errors='replace')[:300]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", default=DEFAULT_URL, help=f"default {DEFAULT_URL}")
    parser.add_argument(
        "--api-key", default=settings.value("api_key", os.environ), help=f"default: ${KEY_VARIABLE}"
    )
    parser.add_argument(
        "--dp-rank", type=int, metavar="N", help="one data-parallel rank, from 0 (default: all)"
    )


def server_of(arguments: argparse.Namespace) -> Server:
    url = arguments.url
    full = url if "://" in url else f"http://{url}"
    return Server(full, arguments.api_key, arguments.dp_rank)
