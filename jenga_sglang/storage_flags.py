"""Which storage `--hicache-storage-backend` may name below host memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jenga_sglang.refusal import refuse

FLAG = "--hicache-storage-backend"
CONFIG_FLAG = "--hicache-storage-backend-extra-config"
# Those that take and give an object by value, and by its address.
BY_VALUE, BY_ADDRESS = ("file", "dynamic"), ("nixl", "mooncake")
BACKENDS = (*BY_VALUE, *BY_ADDRESS)


def check(values: Mapping[str, Any]) -> None:
    """Raise ``SystemExit`` with one line for storage that does not work. ``values`` are fields of
    SGLang's ``ServerArgs``."""
    backend = values.get("hicache_storage_backend")
    if backend is None:
        return
    if not values.get("enable_hierarchical_cache"):
        raise refuse(
            f"{FLAG} {backend}",
            "is below host memory: add --enable-hierarchical-cache, or leave it out",
        )
    config = values.get("hicache_storage_backend_extra_config") or "{}"
    if config.startswith("@"):
        config = "{}"  # a file, which is read when the backend is opened
    try:
        more = json.loads(config)
    except ValueError as error:
        raise refuse(CONFIG_FLAG, f"is not JSON ({error}); give an object, or @FILE") from error
    passes = bool(more.get("hicache_storage_pass_prefix_keys"))
    if why := why_not(backend, more, pass_prefix_keys=passes):
        raise refuse(f"{FLAG} {backend}", why)


def why_not(backend: str, more: Mapping[str, Any], *, pass_prefix_keys: bool) -> str | None:
    """Why a backend with ``more`` configuration does not work, and what does; None if it does."""
    if backend not in BACKENDS:
        return (
            f"has not been tried with pages of several groups; choose one of {', '.join(BACKENDS)}"
        )
    if pass_prefix_keys:
        return "keys before a page are not passed; leave out hicache_storage_pass_prefix_keys"
    if more.get("interface_v1"):
        return "a class of one's own takes and gives pages by value; leave out interface_v1"
    return None
