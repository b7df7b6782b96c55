"""What changes inside a Jenga server, function by function of SGLang: a file for each concern.

Imported by processes of Jenga servers only. A body's docstring says why it is needed, ``until``
when it can go; `patches/README.md` lists both.
"""

from __future__ import annotations

from jenga_sglang import versions
from jenga_sglang.adapter.hooks import (
    arguments,
    disaggregation,
    drafts,
    embeddings,
    encoder,
    mooncake,
    observe,
    pool_bytes,
    pools,
    recurrent,
    requests,
    scheduling,
    weights,
)
from jenga_sglang.adapter.hooks.backends import register_backends
from jenga_sglang.hook import Hook, hooks_of
from jenga_sglang.registry import registry

__all__ = [
    "http_hooks",
    "pool_hooks",
    "register_backends",
    "runtime_hooks",
    "serving_hooks",
    "transfer_hooks",
]

SERVING = (
    arguments,
    scheduling,
    pool_bytes,
    observe,
    recurrent,
    encoder,
    embeddings,
    requests,
    disaggregation,
    weights,
)
DRAFTING = (drafts,)


def runtime_hooks() -> list[Hook]:
    """Every hook beyond the command line that this SGLang needs."""
    return [*([] if registry() else pool_hooks()), *serving_hooks()]


def pool_hooks() -> list[Hook]:
    """What a registry of memory backends makes unnecessary."""
    return hooks_of(pools)


def serving_hooks() -> list[Hook]:
    """What every SGLang needs, and what one in which we can draft needs beside that."""
    drafting = DRAFTING if versions.can_draft(versions.installed_sglang()) else ()
    return hooks_of(*SERVING, *drafting)


def transfer_hooks() -> list[Hook]:
    """What a server that sends or receives KV needs beside them, once it has its pool."""
    return hooks_of(mooncake)


def http_hooks() -> list[Hook]:
    """What the process that answers HTTP needs beside them."""
    from jenga_sglang.adapter.hooks import http

    return hooks_of(http)
