"""Jenga servers that the tests of this folder share; a start takes longer than most tests.

Tests that need a server of their own are marked `long`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client import JENGA, STRICT, Client
from taught_model import make_taught_model

POOL_TOKENS = 20_000


@pytest.fixture(scope="session")
def taught_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model that knows the answers which SGLang's kits expect."""
    return make_taught_model(tmp_path_factory.mktemp("model") / "taught")


@pytest.fixture(scope="session")
def server(taught_model: Path, start_shared_server: Callable[..., Any]) -> Client:
    """SGLang's defaults (overlap schedule, radix cache), pages of 16, prefill in chunks of 512,
    and a pool in which no request of the model's full length fits. It starts as a user's does."""
    flags = ("--chunked-prefill-size", "512", "--enable-metrics", "--enable-cache-report")
    pool = ("--max-total-tokens", str(POOL_TOKENS))
    started = start_shared_server(
        "--model-path", str(taught_model), *JENGA, *pool, *flags, env=STRICT, is_forked=False
    )
    return Client(started.port, started.process, started.log_path)


@pytest.fixture(scope="module")
def start_jenga(start_server: Callable[..., Any], taught_model: Path) -> Callable[..., Client]:
    """`(*flags, model=…, env={}, port=…) -> Client`; the server stops with the module."""

    def start(
        *flags: str,
        model: Path = taught_model,
        env: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Client:
        env = STRICT | (env or {})
        started = start_server("--model-path", str(model), *JENGA, *flags, env=env, port=port)
        return Client(started.port, started.process, started.log_path)

    return start
