"""SGLang's registry of memory backends, where SGLang has one.

SGLang as published has none: `patches/` has it for those who build from source.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

REGISTRY = "sglang.srt.mem_cache.memory_backend"


def registry() -> Any | None:
    """SGLang's registry module, or None in an SGLang without one."""
    try:
        return import_module(REGISTRY)
    except ModuleNotFoundError as error:
        if error.name != REGISTRY:
            raise
        return None
